"""Deletes what is older than the operator wants to keep."""

import asyncio
import logging
import shutil

from src.service.files.blobs import Blobs
from src.service.files.removal import delete_bytes
from src.service.settings import ServiceSettings
from src.service.store.database import Database
from src.service.store.file_rows import delete_file, expired_files
from src.service.store.runs import old_runs, remove_data, unfinished_runs
from src.service.times import now_text

log = logging.getLogger("service.retention")
PAUSE_SECONDS = 60.0


class Retention:
    """Looks now and then for files, data of predictions and folders that nobody needs."""

    def __init__(self, settings: ServiceSettings, database: Database, blobs: Blobs) -> None:
        self._settings, self._database, self._blobs = settings, database, blobs

    async def run(self) -> None:
        """Delete until this is canceled."""
        await self._delete_folders()
        while True:
            try:
                await self.delete_old()
            except Exception:
                log.exception("what is old could not be deleted")
            await asyncio.sleep(PAUSE_SECONDS)

    async def delete_old(self) -> None:
        """Delete the files whose time is over, and the data of predictions that ended long ago."""
        for file in await self._database.read(expired_files):
            await delete_bytes(self._database, self._blobs, file.id, delete_file, file.id)
        if self._settings.keep_runs_seconds is not None:
            before = now_text(plus_seconds=-self._settings.keep_runs_seconds)
            for run_id in await self._database.read(old_runs, before):
                await self._database.write(remove_data, run_id)

    async def _delete_folders(self) -> None:
        """Delete the folders of trainings that have ended: the service died before it could."""
        folder = self._settings.data_dir / "trainings"
        rows = await self._database.read(unfinished_runs, "training")
        kept = {row.id for row in rows}
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in kept:
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
