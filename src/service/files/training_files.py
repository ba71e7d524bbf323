"""The files of a training as its request brings them, checked before anything runs."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from src.data.reading.example_file import ExampleFile
from src.errors import UserError
from src.service.files.keep import keep_file
from src.service.files.own_files import find_own_file
from src.service.files.removal import delete_bytes
from src.service.http.addresses import own_address
from src.service.http.problem import invalid
from src.service.runs.inputs import DATA_FILES
from src.service.service import Service
from src.service.store.file_rows import delete_file
from src.service.store.ids import new_id
from src.weights.download.data_url import decode_data_url


@asynccontextmanager
async def bringing_files(
    service: Service, inputs: object, owner: str, base: str
) -> AsyncIterator[object]:
    """Context of the inputs with the files that came inside of them stored, and named by URLs.

    Clients send them as data URLs, as bare base64, or as the JSON of a JavaScript Buffer. A request
    that is refused in the context leaves none of them. Raises Problem.
    """
    given: dict[str, Any] = inputs if isinstance(inputs, dict) else {}
    brought: dict[str, str] = {}
    try:
        for name in DATA_FILES:
            content = _content(name, given.get(name), service.settings.file_bytes)
            if content is not None:
                file_id = new_id()
                await _keep(service, file_id, owner, f"{name}.jsonl", content)
                brought[name] = file_id
        urls = {name: f"{base}/v1/files/{file_id}" for name, file_id in brought.items()}
        yield {**given, **urls} if urls else inputs
    except Exception:
        for file_id in brought.values():
            await delete_bytes(service.database, service.blobs, file_id, delete_file, file_id)
        raise


async def check_files(service: Service, inputs: dict[str, Any], owner: str, base: str) -> None:
    """Raise Problem for a file of the service that holds no examples.

    What lies elsewhere is fetched and checked when the training begins.
    """
    for name in DATA_FILES:
        own = own_address(inputs.get(name), base)
        url = inputs.get(name)
        if own is None:
            if url is not None and not url.lower().startswith(("http://", "https://")):
                raise invalid(
                    f"input.{name}", f"expected an http(s) or data: URL, found {url[:80]!r}"
                )
            continue
        file = await service.database.read(find_own_file, own, owner)
        if file is None:
            raise invalid(f"input.{name}", f"there is no file {own.id}")
        async with service.blobs.local_path(file.key) as path:
            try:
                await asyncio.to_thread(_check, path, file.name)
            except UserError as error:
                raise invalid(f"input.{name}", str(error), "invalid_file") from None


async def _keep(service: Service, file_id: str, owner: str, name: str, content: bytes) -> None:
    """Store a file that came inside of a request; nobody lists it."""

    async def chunks() -> AsyncIterator[bytes]:
        yield content

    values = {
        "id": file_id, "owner": owner, "name": name, "api": "input",
        "content_type": "application/jsonl",
    }  # fmt: skip
    await keep_file(service, values, chunks())


def _content(name: str, value: Any, max_bytes: int) -> bytes | None:
    """Return the bytes that an input holds itself; None for a URL."""
    if isinstance(value, dict) and value.get("type") == "Buffer":
        data: Any = value.get("data")
        try:
            return bytes(data if isinstance(data, list) else [data])
        except (TypeError, ValueError):
            raise invalid(f"input.{name}", "expected the JSON of a Buffer with its data") from None
    if not isinstance(value, str):
        return None
    if value[:5].lower() == "data:":
        try:
            return decode_data_url(value, max_bytes)
        except UserError as error:
            raise invalid(f"input.{name}", str(error)) from None
    if "://" in value[:12] or len(value) < 8:
        return None
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None


def _check(path: Path, name: str) -> None:
    ExampleFile(path, name).check()
