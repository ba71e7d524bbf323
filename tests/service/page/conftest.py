"""One real service on the tiny base model, and one browser, which all tests of the page share."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from src.cli.tiny_model import make_base_model
from tests.conftest import ROWS
from tests.service.page.browser import CHROMIUM, DRIVER, LIGHT, Browser, running_browser
from tests.service.running import add_token, running_service


@dataclass(frozen=True)
class Site:
    """A service with a page, its owners' tokens and a file of examples."""

    url: str
    token: str
    stranger: str
    data: Path


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("page")
    texts = [f"{row['prompt']}\n{row['completion']}" for row in ROWS] * 4
    make_base_model(
        folder / "tiny-llama", texts, vocab_size=400, hidden_size=64, num_layers=2, num_heads=4,
        num_key_value_heads=2, max_seq_len=16384,
    )  # fmt: skip
    data = folder / "colours.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    environment = {
        **os.environ,
        "DATA_DIR": str(folder / "data"),
        "BASE_MODEL": str(folder / "tiny-llama"),
        "NUM_PROCESSES": "1",
    }
    token, stranger = (add_token(name, environment) for name in ("alice", "mallory"))
    with running_service(environment, folder / "service.log") as url:
        yield Site(url, token, stranger, data)


@pytest.fixture(scope="session")
def window() -> Iterator[Browser]:
    if DRIVER is None or CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium chromium-driver)")
    with running_browser() as browser:
        yield browser


@pytest.fixture
def browser(window: Browser, site: Site) -> Iterator[Browser]:
    """A browser that is signed in; what it complains of, or asks of others, fails the test."""
    window.show_as(LIGHT)
    window.open(f"{site.url}/")
    if "/sign-in" in window.url:
        window.write("#token", site.token)
        window.click("main button")
    window.read_logs()
    window.complaints.clear()
    yield window
    window.read_logs()
    assert window.complaints == []
    assert window.hosts == {site.url.removeprefix("http://")}
