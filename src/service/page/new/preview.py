"""What a training would do, told by a process beside the service."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from src.service.http.problem import Problem, invalid
from src.service.service import Service
from src.service.settings import worker_environment
from src.service.store.file_rows import find_file
from src.service.work.workers import LocalExecutor

SECONDS = 120.0


class Previews:
    """Makes previews, one at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turn = asyncio.Lock()

    async def look_ahead(
        self, owner: str, inputs: dict[str, Any], files: dict[str, str]
    ) -> dict[str, Any]:
        """Return the plan's `lines` and the `report` of the data; `files` are ids by input.

        Raises Problem.
        """
        names, paths = {}, {}
        async with AsyncExitStack() as stack:
            for name, file_id in files.items():
                file = await self._service.database.read(find_file, file_id, owner)
                if file is None or file.size is None:
                    raise invalid(f"input.{name}", f"there is no file {file_id[:40]}")
                names[name] = file.name
                path = await stack.enter_async_context(self._service.blobs.local_path(file.id))
                paths[name] = str(path)
            asked = {"do": "preview", "input": {**inputs, **paths}, "names": names}
            try:
                async with asyncio.timeout(SECONDS), self._turn:
                    end = await self._ask(asked)
            except TimeoutError:
                raise Problem(
                    503,
                    f"This takes longer than {SECONDS:.0f} s; the log of the training will have it",
                ) from None
        if end["error"] is not None:
            raise Problem(422, end["error"])
        return end

    async def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        environment = worker_environment(self._service.settings)
        # The tokenizer, and what plans, are installed where the service is.
        worker = await LocalExecutor().start("preview", environment)
        try:
            await worker.send(asked)
            async for message in worker:
                return message
        except ConnectionError:
            pass
        finally:
            await worker.stop(0)
        raise Problem(500, "The preview ended without a word (often: it ran out of memory)")
