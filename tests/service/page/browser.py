"""A headless Chromium, driven by the WebDriver protocol."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from src.process_tree import end_together

DRIVER, CHROMIUM = shutil.which("chromedriver"), shutil.which("chromium")
SECONDS = 120.0
"""Longer than anything that is waited for takes."""
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--window-size=1100,900",
]  # fmt: skip
LIGHT, DARK = ({"name": "prefers-color-scheme", "value": value} for value in ("light", "dark"))


class Browser:
    """One window; elements are named by CSS selectors."""

    def __init__(self, session: str) -> None:
        self._session = session
        self.hosts: set[str] = set()
        """All that was asked for something."""
        self.complaints: list[str] = []
        """Warnings and errors of the console."""

    def open(self, url: str) -> None:
        """Go to a page."""
        self._call("POST", "/url", url=url)
        self.read_logs()

    @property
    def url(self) -> str:
        """Where the window is."""
        return self._call("GET", "/url")

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script returns."""
        return self._call("POST", "/execute/sync", script=script, args=list(arguments))

    def text(self, selector: str) -> str:
        """Return the text of the first such element, empty where there is none."""
        script = "return document.querySelector(arguments[0])?.textContent ?? ''"
        return self.run(script, selector)

    def texts(self, selector: str) -> list[str]:
        """Return the text of each such element."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.run(script, selector)

    def click(self, selector: str) -> None:
        """Click an element as a person would: it has to be there to be seen."""
        self._call("POST", f"/element/{self._find(selector)}/click")

    def write(self, selector: str, text: str) -> None:
        """Write into an emptied field, or choose a file."""
        element = self._find(selector)
        if "[type=file]" not in selector:
            self._call("POST", f"/element/{element}/clear")
        self._call("POST", f"/element/{element}/value", text=text)

    def press(self, keys: str) -> None:
        """Press keys, one after another."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def wait(self, is_there: Callable[[], Any]) -> Any:
        """Return what `is_there` returns as soon as it is true."""
        deadline = time.monotonic() + SECONDS
        while not (found := is_there()):
            assert time.monotonic() < deadline, f"{self.url}: {self.text('main')[:2000]}"
            time.sleep(0.05)
        return found

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Call the DevTools protocol, for what WebDriver has no word for."""
        return self._call("POST", "/goog/cdp/execute", cmd=command, params=parameters)

    def show_as(self, scheme: dict[str, str], *, width: int = 1100, height: int = 900) -> None:
        """Have the pages shown light or dark, in a window of that size."""
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def save_picture(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def read_logs(self) -> None:
        """Take over what the browser has logged since the last time."""
        for entry in self._call("POST", "/se/log", type="browser"):
            self.complaints.append(f"{entry['level']}: {entry['message']}")
        for entry in self._call("POST", "/se/log", type="performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = urlsplit(message["params"]["request"]["url"])
                if url.scheme not in ("data", "chrome", "about"):
                    self.hosts.add(url.netloc)

    def _find(self, selector: str) -> str:
        using = {"using": "css selector", "value": selector}
        return self._call("POST", "/element", **using)[ELEMENT]

    def _call(self, method: str, path: str, **body: Any) -> Any:
        answer = requests.request(
            method, self._session + path, json=body if method == "POST" else None, timeout=SECONDS
        ).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer["message"]
        return answer


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run a browser with a profile of its own."""
    assert DRIVER is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    driver = subprocess.Popen(
        [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    # Neither outlives a test that is killed.
    watchers = [end_together(os.getpid(), driver.pid)]
    try:
        begun = _begin(address)
        watchers.append(end_together(driver.pid, begun["capabilities"]["goog:processID"]))
        session = f"{address}/session/{begun['sessionId']}"
        yield Browser(session)
        requests.delete(session, timeout=SECONDS)
    finally:
        driver.terminate()
        driver.wait()
        for watcher in watchers:
            if watcher is not None:
                watcher.wait()


def _begin(address: str) -> dict[str, Any]:
    asked = {
        "browserName": "chrome",
        "goog:chromeOptions": {"args": OPTIONS, "binary": CHROMIUM},
        "goog:loggingPrefs": {"browser": "WARNING", "performance": "ALL"},
    }
    body = {"capabilities": {"alwaysMatch": asked}}
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            answer = requests.post(f"{address}/session", json=body, timeout=SECONDS).json()["value"]
        except requests.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            assert "sessionId" in answer, answer
            return answer
