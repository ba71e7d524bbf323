"""Where base models are fetched from: the Hub, or a mirror."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from src.errors import UserError
from src.files.printable import printable
from src.weights.base_model.check import check_readable, list_shards
from src.weights.download.download import HttpError, fetch

NAMED_TEMPLATES = "additional_chat_templates"
OPTIONAL_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    *(f"{NAMED_TEMPLATES}/{name}.jinja" for name in ("tool_use", "rag")),
)
"""A mirror cannot be asked what it has: the names are those that Transformers gives."""
WEIGHTS_PATTERNS = ("*.safetensors",)
OTHER_PATTERNS = ("*.json", "tokenizer.model", "*.jinja", "merges.txt")
MAX_FILE_BYTES = 1 << 40
DOWNLOAD_SECONDS = 6 * 3600


def fetch_from_mirror(mirror: str, folder: Path, *, with_weights: bool) -> None:
    """Fetch what an address gives under the names of the files.

    Raises UserError for what is missing there or breaks off.
    """
    address, mark, query = mirror.partition("?")

    def get(name: str, *, is_optional: bool = False) -> bool:
        (folder / name).parent.mkdir(exist_ok=True)
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
    with suppress(OSError):
        (folder / NAMED_TEMPLATES).rmdir()  # where it is empty
    check_readable(folder)
    if not with_weights:
        return
    if get("model.safetensors.index.json", is_optional=True):
        for name in list_shards(folder):
            get(name)
    else:
        get("model.safetensors")


def fetch_from_hub(
    repository: str, folder: Path, environ: Mapping[str, str], *, with_weights: bool
) -> None:
    """Fetch the newest revision of a repository of the Hub, and note which it is.

    Raises UserError that says what the Hub asks for.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        RepositoryNotFoundError,
    )

    api = HfApi(endpoint=environ.get("HF_ENDPOINT"), token=environ.get("HF_TOKEN") or False)

    def get(patterns: Sequence[str]) -> None:
        api.snapshot_download(
            repository, revision=revision, local_dir=folder, allow_patterns=list(patterns)
        )

    try:
        revision = api.model_info(repository).sha
        get(OTHER_PATTERNS)
        check_readable(folder)
        if with_weights:
            get(WEIGHTS_PATTERNS)
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
