"""Takes the pictures of docs/images on SmolLM2: `python -m tests.service.page.pictures`."""

import json
import os
import tempfile
from pathlib import Path

from tests.conftest import ROWS
from tests.service.page.browser import DARK, LIGHT, Browser, running_browser
from tests.service.running import ROOT, add_token, running_service

SIZE = {"width": 1000, "height": 760}


def take(browser: Browser, url: str, token: str, data: Path, folder: Path) -> None:
    """Go through the page as a new user does, and keep what is seen on the way."""

    def num_ended() -> int:
        return browser.run("return document.querySelectorAll('[data-final]').length")

    browser.show_as(LIGHT, **SIZE)
    browser.open(f"{url}/sign-in?next=/new")
    browser.write("#token", token)
    browser.click("main button")
    browser.write("#file-train_data[type=file]", str(data))
    browser.click("main section form button")
    browser.wait(lambda: browser.texts("#report pre"))
    browser.save_picture(folder / "new.png")
    browser.write("#learning_rate", "0.001")
    browser.click("#training > .wide > button")
    browser.wait(lambda: num_ended() or "step 10" in browser.text("[data-part=status]"))
    browser.save_picture(folder / "training.png")
    browser.wait(num_ended)
    browser.show_as(DARK, **SIZE)
    browser.click(".result .button")
    browser.write("#prompt", ROWS[0]["prompt"])
    browser.click("form.fields > .wide > button")
    browser.wait(lambda: num_ended() == 2)
    browser.save_picture(folder / "playground.png")


def main() -> None:
    """Start a service and a browser, and take the pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "colours.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        environment = {
            **os.environ,
            "DATA_DIR": str(folder / "data"),
            "BASE_MODEL": "smollm2-135m-instruct",
            "NUM_PROCESSES": "1",
        }
        token = add_token("alice", environment)
        with running_service(environment, folder / "log") as url, running_browser() as browser:
            take(browser, url, token, data, ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
