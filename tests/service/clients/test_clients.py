"""Real clients against the real service; docs/compatibility.md lists the checks."""

import json
from concurrent.futures import Future
from subprocess import CompletedProcess

import pytest

from tests.service.clients.clients import CLIENTS, ROOT, client_checks
from tests.service.clients.compatibility import render
from tests.service.clients.guides import GUIDES, Guide

CHECKS = [
    pytest.param((client, program, check), id=f"{client.slug}-{program.stem}-{check.name}")
    for client in CLIENTS
    for program, check in client_checks(client)
]


@pytest.mark.parametrize("check", CHECKS)
def test_client(check, programs: dict[object, Future[CompletedProcess]]):
    client, program, named = check
    done = programs[client, program].result()
    found = found_by(done).get(named.name, f"not run: {done.stderr[-3000:]}")
    if found is not None:
        pytest.fail(found, pytrace=False)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.id)
def test_guide(guide: Guide, programs: dict[object, Future[CompletedProcess]]):
    if not guide.program.exists():
        pytest.skip("the old guides lie beside the project, and are not there")
    done = programs[guide].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.strip()


def found_by(done: CompletedProcess) -> dict[str, str | None]:
    """Return by the name of each check what it found to be wrong."""
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line["found"] for line in lines}


def test_the_page_lists_the_checks():
    assert (ROOT / "docs" / "compatibility.md").read_text() == render()


def test_every_check_says_what_it_shows():
    checks = [check for client in CLIENTS for _, check in client_checks(client)]
    assert len(checks) >= 120
    assert [check.name for check in checks if not check.shown.endswith(".")] == []
