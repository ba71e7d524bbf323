"""What the workers get: a run's inputs, with files where they can read them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from src.base_models import KNOWN_MODELS
from src.errors import UserError
from src.service.files.blobs import Blobs
from src.service.files.own_files import find_own_file
from src.service.http.addresses import own_address
from src.service.runs.live import LiveRun
from src.service.settings import ServiceSettings
from src.service.store.database import Database
from src.service.store.models import Version, base_model_name
from src.service.store.runs import Run
from src.weights.download.download import fetch

DATA_FILES = ("train_data", "validation_data")


class WorkInputs:
    """Turns what a client sent into what a worker takes."""

    def __init__(
        self, settings: ServiceSettings, database: Database, blobs: Blobs, schema: dict[str, Any]
    ) -> None:
        self._settings, self._database, self._blobs = settings, database, blobs
        schemas = schema["components"]["schemas"]
        self._known = {
            "prediction": schemas["Input"]["properties"],
            "training": schemas["TrainingInput"]["properties"],
        }
        self._served = base_model_name(settings.base_model)
        self._base_models = {base_model_name(name) for name in KNOWN_MODELS}

    @asynccontextmanager
    async def of_prediction(
        self, row: Run, version: Version | None, live: LiveRun
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the engine's inputs; raises UserError for weights that are not there."""
        inputs = self._plain(row, live)
        if version is None:
            raise UserError(f"the version {row.version} was deleted")
        async with AsyncExitStack() as stack:
            asked, key = inputs.get("replicate_weights"), version.weights
            if asked and (own := own_address(asked, row.base_url)) is not None:
                file = await self._database.read(find_own_file, own, row.owner)
                if file is None:
                    raise UserError(f"replicate_weights: there is no file {own.id}")
                key, asked = file.key, None
            if key is not None and not asked:
                path = await stack.enter_async_context(self._blobs.local_path(key))
                inputs["replicate_weights"] = str(path)
            yield inputs

    @asynccontextmanager
    async def of_training(
        self, row: Run, live: LiveRun, folder: Path
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the inputs of a training and what its files are called.

        Files of elsewhere are fetched into `folder`. Raises UserError for one that cannot be had.
        """
        inputs, names = self._plain(row, live), {}
        async with AsyncExitStack() as stack:
            for name in DATA_FILES:
                if url := inputs.get(name):
                    names[name] = name
                    own = own_address(url, row.base_url)
                    if own is None:
                        path = folder / f"{name}.jsonl"
                        size = self._settings.file_bytes
                        await asyncio.to_thread(fetch, url, path, max_bytes=size)
                    else:
                        file = await self._database.read(find_own_file, own, row.owner)
                        if file is None:
                            raise UserError(f"{name}: there is no file {own.id}")
                        path = await stack.enter_async_context(self._blobs.local_path(file.key))
                        names[name] = file.name
                    inputs[name] = str(path)
            yield {"input": inputs, "names": names}

    def _plain(self, row: Run, live: LiveRun) -> dict[str, Any]:
        """Return the inputs without nulls and what the model does not know, which is logged."""
        known = self._known[row.kind]
        given = {name: value for name, value in (row.input or {}).items() if value is not None}
        unknown = sorted(given.keys() - known)
        if unknown:
            live.log(f"unknown inputs are ignored: {', '.join(unknown)[:500]}\n")
        if row.model != self._served and row.model in self._base_models:
            live.log(f"{row.model}: this service has {self._served}, which takes its place\n")
        return {name: value for name, value in given.items() if name in known}
