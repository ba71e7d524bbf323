"""What the operator sets for the service; each variable is read once, typed and checked."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from src.environment import read_flag
from src.errors import UserError

DATA_DIR = "~/.local/share/cog-finetune"
DEFAULT_MODEL = "smollm2-135m-instruct"
"""What answers where no `BASE_MODEL` is set: its weights come with the packages."""


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """The variables of the service."""

    data_dir: Path
    """`DATA_DIR`: where everything lies that must outlive the process."""
    database_url: str
    """`DATABASE_URL`: SQLite in DATA_DIR, or a Postgres."""
    files_url: str | None = None
    """`FILES_URL`: where the bytes of files lie, such as s3://bucket/folder; None is DATA_DIR."""
    base_model: str = DEFAULT_MODEL
    """`BASE_MODEL`, as the workers read it."""
    public_url: str | None = None
    """`PUBLIC_URL`: how clients reach the service; None is how each request did."""
    executor: str = "local"
    """`EXECUTOR`: local, or ray."""
    cog_image: str | None = None
    """`COG_IMAGE`: a built image that runs the work, instead of this checkout."""
    any_address: bool = False
    """`ALLOW_PRIVATE_URLS`: whether URLs and webhooks may lead into private networks."""
    makes_room: bool | None = None
    """`MAKE_ROOM`: whether the engine ends while a training runs; None where there is a GPU."""
    engine_replicas: int = 1
    """`ENGINE_REPLICAS`: engines that share the predictions."""
    trainings_at_once: int = 1
    """`TRAININGS_AT_ONCE`."""
    creates_per_minute: int = 600
    """`CREATES_PER_MINUTE`: predictions, trainings and jobs that one token may create."""
    requests_per_minute: int = 3000
    """`REQUESTS_PER_MINUTE`: all other requests of one token."""
    unfinished_limit: int = 20_000
    """`UNFINISHED_LIMIT`: predictions and trainings of one owner that wait or run."""
    stored_bytes: int = 50 << 30
    """`STORED_GB`, in bytes: files, weights, answers and logs of one owner."""
    file_bytes: int = 2 << 30
    """`FILE_GB`, in bytes: the largest file that is taken."""
    keep_files_seconds: float | None = None
    """`KEEP_FILES_HOURS`, in seconds; None keeps them until they are deleted."""
    keep_runs_seconds: float | None = None
    """`KEEP_RUNS_HOURS`, in seconds: inputs, outputs and logs of ended predictions."""
    prediction_seconds: float = 1800.0
    """`PREDICTION_SECONDS`: the longest that a prediction may run."""


def read_service_settings(environ: Mapping[str, str]) -> ServiceSettings:
    """Return what the environment asks of the service.

    Raises UserError that names the variable that cannot be meant.
    """
    data_dir = Path(environ.get("DATA_DIR") or DATA_DIR).expanduser().absolute()
    executor = environ.get("EXECUTOR", "").strip() or "local"
    if executor not in ("local", "ray"):
        raise UserError(f"EXECUTOR: expected local or ray, found {executor!r}")
    public_url = (environ.get("PUBLIC_URL") or "").strip().rstrip("/") or None
    if public_url is not None and urlsplit(public_url).scheme not in ("http", "https"):
        raise UserError(f"PUBLIC_URL: expected an http(s) address, found {public_url!r}")
    gigabytes, hours = float(1 << 30), 3600.0
    keep_files = _number("KEEP_FILES_HOURS", environ)
    keep_runs = _number("KEEP_RUNS_HOURS", environ)
    return ServiceSettings(
        data_dir=data_dir,
        database_url=environ.get("DATABASE_URL") or f"sqlite:///{data_dir / 'service.db'}",
        files_url=environ.get("FILES_URL") or None,
        base_model=environ.get("BASE_MODEL") or DEFAULT_MODEL,
        public_url=public_url,
        executor=executor,
        cog_image=environ.get("COG_IMAGE") or None,
        any_address=read_flag("ALLOW_PRIVATE_URLS", environ) or False,
        makes_room=read_flag("MAKE_ROOM", environ),
        engine_replicas=_count("ENGINE_REPLICAS", environ, 1),
        trainings_at_once=_count("TRAININGS_AT_ONCE", environ, 1),
        creates_per_minute=_count("CREATES_PER_MINUTE", environ, 600),
        requests_per_minute=_count("REQUESTS_PER_MINUTE", environ, 3000),
        unfinished_limit=_count("UNFINISHED_LIMIT", environ, 20_000),
        stored_bytes=int((_number("STORED_GB", environ) or 50) * gigabytes),
        file_bytes=int((_number("FILE_GB", environ) or 2) * gigabytes),
        keep_files_seconds=keep_files and keep_files * hours,
        keep_runs_seconds=keep_runs and keep_runs * hours,
        prediction_seconds=_number("PREDICTION_SECONDS", environ) or 1800.0,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def worker_environment(settings: ServiceSettings) -> dict[str, str]:
    """Return the environment of an engine or a training."""
    weights = settings.data_dir / "files"
    return {**os.environ, "BASE_MODEL": settings.base_model, "WEIGHTS_DIR": str(weights)}


def _number(name: str, environ: Mapping[str, str]) -> float | None:
    asked = environ.get(name, "").strip()
    if not asked:
        return None
    try:
        number = float(asked)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e12:
        raise UserError(f"{name}: expected a number above 0, found {asked!r}")
    return number


def _count(name: str, environ: Mapping[str, str], default: int) -> int:
    number = _number(name, environ) or default
    if number != int(number):
        raise UserError(f"{name}: expected a whole number, found {environ[name]!r}")
    return int(number)
