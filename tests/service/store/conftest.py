"""Both databases: SQLite in a file, and a real Postgres where one is installed."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.service.store.database import Database

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    if not BINARIES:
        pytest.skip("no Postgres is installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = None
    if os.geteuid() == 0:  # it refuses to run as root
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)

    def run(name: str, *arguments: str) -> None:
        command = [str(BINARIES[-1] / name), *arguments]
        subprocess.run(
            command, check=True, user=user and user.pw_uid, capture_output=True, cwd=folder
        )

    data = str(folder / "data")
    run("initdb", "-D", data, "-A", "trust", "-U", "service", "--no-sync")
    log = str(folder / "log")
    run("pg_ctl", "-D", data, "-w", "-l", log, "-o", f"-p {port} -k {folder} -F", "start")
    try:
        run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "service", "service")
        yield f"postgresql://service@127.0.0.1:{port}/service"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    database = Database(url)
    yield database
    database.close()
