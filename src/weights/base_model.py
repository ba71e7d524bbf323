"""Find the base model that `BASE_MODEL` names, and fetch it once, completely or not at all."""

import fcntl
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from src.base_models import KNOWN_MODELS
from src.errors import UserError
from src.weights.download import HttpError, check_url, fetch, printable_url
from src.weights.printable import printable

OPTIONAL_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
HUB_PATTERNS = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja", "merges.txt"]
MAX_FILE_BYTES = 1 << 40
DOWNLOAD_SECONDS = 6 * 3600


@dataclass(frozen=True)
class BaseModelFiles:
    """A base model in a local folder, whole."""

    name: str
    folder: Path
    revision: str | None


def find_base_model(environ: Mapping[str, str]) -> BaseModelFiles:
    """Return the folder of the base model that the environment names, fetched if it is not there.

    Raises UserError that says what to set or what is missing.
    """
    name = environ.get("BASE_MODEL", "").strip()
    if not name:
        raise UserError(
            "BASE_MODEL is not set: expected one of "
            f"{', '.join(KNOWN_MODELS)}, a Hub id (owner/name), or a folder"
        )
    mirror = environ.get("BASE_MODEL_URL", "").strip()
    if mirror and "://" not in mirror:
        return _local(name, Path(mirror), "BASE_MODEL_URL")
    if mirror:
        check_url(mirror)
    if not mirror and name not in KNOWN_MODELS and Path(name).is_dir():
        return _local(name, Path(name), "BASE_MODEL")
    known = KNOWN_MODELS.get(name)
    repository = known.repository if known else name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) and not mirror:
        raise UserError(
            f"BASE_MODEL: {printable(name)!r} is no folder here, no Hub id (owner/name) and none "
            f"of {', '.join(KNOWN_MODELS)}"
        )
    cache = Path(environ.get("BASE_MODEL_CACHE") or "~/.cache/cog-finetune").expanduser()
    # A query may be a signature: it is asked for, and kept nowhere.
    source = re.split("[?#]", mirror, maxsplit=1)[0] or repository
    folder = cache / re.sub(r"[^\w.-]+", "--", source.strip("/"))
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            _fetch_whole(folder, environ, mirror=mirror, repository=repository)
    check_complete(folder)
    revision = folder / "revision.txt"
    return BaseModelFiles(name, folder, revision.read_text() if revision.is_file() else None)


def _local(name: str, folder: Path, variable: str) -> BaseModelFiles:
    if not folder.is_dir():
        raise UserError(f"{variable}: there is no folder {printable(folder)}")
    check_complete(folder)
    return BaseModelFiles(name, folder.resolve(), None)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time fetch a model; the others wait and find it there."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_whole(folder: Path, environ: Mapping[str, str], *, mirror: str, repository: str) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    started = time.monotonic()
    print(
        f"fetching the base model from {printable_url(mirror) if mirror else repository}",
        flush=True,
    )
    try:
        if mirror:
            _fetch_from_mirror(mirror, partial)
        else:
            _fetch_from_hub(repository, partial, environ)
        check_complete(partial)
    except UserError:
        # Files that arrived whole stay for the next try; a wrong set of files does not.
        if (partial / "config.json").is_file():
            shutil.rmtree(partial)
        raise
    partial.rename(folder)
    num_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"fetched {num_bytes / 1e9:.2f} GB in {time.monotonic() - started:.0f} s", flush=True)


def _fetch_from_mirror(mirror: str, folder: Path) -> None:
    address, mark, query = mirror.partition("?")

    def get(name: str, *, is_optional: bool = False) -> bool:
        try:
            fetch(
                f"{address.rstrip('/')}/{name}{mark}{query}",
                folder / name,
                max_bytes=MAX_FILE_BYTES,
                timeout_seconds=DOWNLOAD_SECONDS,
                any_address=True,  # the operator's own mirror, not a stranger's address
            )
        except HttpError as error:
            if is_optional and error.status in (403, 404):
                return False
            raise
        return True

    get("config.json")
    for name in OPTIONAL_FILES:
        get(name, is_optional=True)
    if get("model.safetensors.index.json", is_optional=True):
        for name in _shards(folder):
            get(name)
    else:
        get("model.safetensors")


def _fetch_from_hub(repository: str, folder: Path, environ: Mapping[str, str]) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        RepositoryNotFoundError,
    )

    api = HfApi(endpoint=environ.get("HF_ENDPOINT"), token=environ.get("HF_TOKEN") or False)
    try:
        revision = api.model_info(repository).sha
        api.snapshot_download(
            repository, revision=revision, local_dir=folder, allow_patterns=HUB_PATTERNS
        )
    except GatedRepoError:
        raise UserError(
            f"{repository} is gated on the Hub: accept its licence there and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{repository} is not on the Hub, or is private: check BASE_MODEL and HF_TOKEN"
        ) from None
    except (HTTPError, HFValidationError, OSError) as error:
        reason = printable(str(error).partition("\n")[0], 200)
        raise UserError(f"{repository} could not be fetched from the Hub: {reason}") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    (folder / "revision.txt").write_text(revision or "")


def check_complete(folder: Path) -> None:
    """Prove that a folder holds a whole base model in Hugging Face layout.

    Raises UserError that names the file that is missing, damaged or cut off.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"base model {folder.name}: expected a config.json, found none")
    try:
        json.loads(config.read_text())
    except (ValueError, RecursionError):
        raise UserError(f"base model {folder.name}: config.json is not valid JSON") from None
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"base model {folder.name}: expected a tokenizer "
            f"({' or '.join(TOKENIZER_FILES)}), found none"
        )
    if (folder / "model.safetensors.index.json").is_file():
        names = _shards(folder)
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        found = "pytorch_model.bin only" if list(folder.glob("*.bin")) else "none"
        raise UserError(
            f"base model {folder.name}: expected weights in model.safetensors, found {found}"
        )
    for name in names:
        _check_size(folder / name)


def _shards(folder: Path) -> list[str]:
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        names = sorted(set(index["weight_map"].values()))
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"base model {folder.name}: model.safetensors.index.json is not a valid index"
        ) from None
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise UserError(
                f"base model {folder.name}: the index names {printable(name)!r}, "
                "which is no safetensors file"
            )
    return names


def _check_size(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"base model {path.parent.name}: {path.name} is missing")
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        try:
            if header_size > min(size, 100 << 20):
                raise ValueError
            header = json.loads(file.read(header_size))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
            expected = 8 + header_size + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise UserError(
                f"base model {path.parent.name}: {path.name} is damaged or cut off"
            ) from None
    if size != expected:
        raise UserError(
            f"base model {path.parent.name}: {path.name} is cut off or damaged: "
            f"found {size:,} bytes, expected {expected:,}"
        )
