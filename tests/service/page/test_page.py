"""The page in a real browser: as a new user finds it, on a phone, and by whom it is seen."""

from typing import Any

import pytest
import requests

from tests.conftest import ROWS
from tests.service.page.browser import DARK, LIGHT, Browser
from tests.service.page.conftest import Site

LOSS = "[data-part=progress] polyline"
START, ANSWER = "#training > .wide > button", "form.fields > .wide > button"


def upload(browser: Browser, site: Site) -> None:
    browser.open(f"{site.url}/new")
    browser.write("#file-train_data[type=file]", str(site.data))
    browser.click("main section form button")
    browser.wait(lambda: browser.texts("#report pre"))


def start(browser: Browser, **inputs: Any) -> str:
    """Start a training with the form that is open, and return its path."""
    for name, value in inputs.items():
        browser.write(f"#{name}", str(value))
    browser.click(START)
    browser.wait(lambda: "/runs/" in browser.url)
    return "/runs/" + browser.url.rpartition("/")[2]


def has_ended(browser: Browser, number: int = 1) -> bool:
    return browser.run(f"return document.querySelectorAll('[data-final]').length == {number}")


def ask(site: Site, path: str) -> Any:
    headers = {"Authorization": f"Bearer {site.token}"}
    return requests.get(site.url + path, headers=headers, timeout=30).json()


def session(site: Site, token: str) -> requests.Session:
    """Return a client that is signed in."""
    client = requests.Session()
    client.headers["Origin"] = site.url
    answer = client.post(f"{site.url}/sign-in", data={"token": token}, timeout=30)
    assert answer.url == f"{site.url}/"
    return client


def test_a_new_user_uploads_trains_and_compares(browser: Browser, site: Site):
    upload(browser, site)
    assert any("15 steps (3 epochs x 5)" in line for line in browser.texts("#report li"))
    assert ROWS[0]["completion"] in browser.text("#report pre .learned")
    run = start(
        browser, num_train_epochs=40, learning_rate="0.02", validation_prompt=ROWS[0]["prompt"]
    )
    first = browser.wait(
        lambda: browser.run(f"return document.querySelector('{LOSS}')?.getAttribute('points')")
    )
    browser.wait(
        lambda: (
            browser.run(f"return document.querySelector('{LOSS}').getAttribute('points')") != first
        )
    )
    browser.wait(lambda: has_ended(browser))
    told = ask(site, run.replace("runs", "v1/trainings"))
    assert told["status"] == "succeeded"
    assert told["source"] == "web"
    assert browser.text("pre.log") == told["logs"]
    assert browser.texts("[data-part=progress] td pre") != []
    browser.click(".result .button")
    browser.write("#prompt", ROWS[0]["prompt"])
    browser.click(ANSWER)
    browser.wait(lambda: has_ended(browser, 2))
    shown = browser.texts("#answers pre")
    listed = ask(site, "/v1/predictions")["results"][:2]
    # A stream of events has one end of a line.
    outputs = ["".join(run["output"]).replace("\r", "\n") for run in listed]
    assert sorted(shown) == sorted(outputs)
    browser.open(f"{site.url}/alice/colours")
    weights = browser.run("return document.querySelector('a[download]').href")
    assert len(requests.get(weights, timeout=30).content) > 10_000


def test_an_answer_streams_and_both_kinds_are_canceled_in_place(browser: Browser, site: Site):
    browser.open(f"{site.url}/playground")
    browser.write("#prompt", "Go on.")
    browser.click("main summary")
    browser.write("#max_new_tokens", "16000")
    # Drawn at random, an answer could end by itself.
    browser.write("#temperature", "0")
    browser.click(ANSWER)
    begun = browser.wait(lambda: browser.text("#answers pre"))
    browser.wait(lambda: len(browser.text("#answers pre")) > len(begun))
    browser.click("#answers .danger")
    browser.wait(lambda: has_ended(browser))
    assert browser.text("#answers .badge") == "canceled"
    upload(browser, site)
    run = start(browser, num_train_epochs=5000, new_model="canceled")
    browser.click("main .danger")
    browser.wait(lambda: browser.text("main .badge") == "canceled")
    assert ask(site, run.replace("runs", "v1/trainings"))["status"] == "canceled"


def test_faults_stand_beside_their_fields(site: Site):
    client = session(site, site.token)
    bad = {"content": ("bad.jsonl", b'{"prompt": 1}\n')}
    answer = client.post(f"{site.url}/new/upload", files=bad, timeout=30)
    assert answer.status_code == 422
    assert "bad.jsonl, line 1" in answer.text
    form = {"prompt": "Hello", "left": "", "temperature": "hot", "top_p": "2"}
    form["left"] = ask(site, "/v1/models/meta/llama-2-7b-chat")["latest_version"]["id"]
    page = client.post(f"{site.url}/playground", data=form, timeout=30).text
    assert 'id="temperature-fault">expected a number, found &#34;hot&#34;' in page
    assert 'id="top_p-fault">expected at most 1, found 2' in page
    assert 'value="hot"' in page


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_no_page_is_wider_than_a_phone(browser: Browser, site: Site, scheme: dict[str, str]):
    upload(browser, site)
    new = browser.url.removeprefix(site.url)
    browser.show_as(scheme, width=360, height=640)
    runs = [f"/runs/{run['id']}" for run in ask(site, "/v1/trainings")["results"]]
    for path in (
        "/",
        new,
        "/create",
        "/playground",
        "/meta/llama-2-7b-chat",
        "/uploads",
        "/runs",
        *runs,
    ):
        browser.open(site.url + path)
        assert browser.run("return document.documentElement.scrollWidth") <= 360, path
        paper = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") is (scheme == LIGHT)
        assert browser.run("return [...document.images].length") == 0


def test_the_keyboard_reaches_the_content_first(browser: Browser, site: Site):
    browser.open(f"{site.url}/create")
    tab, enter = "\ue004", "\ue007"
    browser.press(tab)
    assert browser.run("return document.activeElement.textContent") == "Skip to the content"
    browser.press(enter + tab)
    inside = "return document.querySelector('main').contains(document.activeElement)"
    assert browser.run(inside)
    unlabeled = """return [...document.querySelectorAll('input, select, textarea')]
        .filter(e => e.type !== 'hidden' && e.labels.length === 0).length"""
    assert browser.run(unlabeled) == 0


def test_nobody_sees_or_ends_what_is_another_owners(site: Site):
    client, stranger = session(site, site.token), session(site, site.stranger)
    form = {"name": "mine", "visibility": "private"}
    assert client.post(f"{site.url}/create", data=form, timeout=30).url.endswith("/alice/mine")
    version = ask(site, "/v1/models/meta/llama-2-7b-chat")["latest_version"]["id"]
    form = {"prompt": "Hello", "left": version}
    answered = client.post(f"{site.url}/playground", data=form, timeout=30)
    run = answered.url.partition("left=")[2].partition("#")[0]
    for path in ("/alice/mine", f"/runs/{run}", f"/runs/{run}/state"):
        assert client.get(site.url + path, timeout=30).status_code == 200
        assert stranger.get(site.url + path, timeout=30).status_code == 404
    for path in (f"/runs/{run}/cancel", "/alice/mine/delete"):
        assert stranger.post(site.url + path, timeout=30).status_code == 404
    assert "/alice/mine" not in stranger.get(f"{site.url}/create", timeout=30).text
    assert run not in stranger.get(f"{site.url}/playground?left={run}", timeout=30).text


def test_a_session_is_opened_by_a_token_and_by_nothing_else(site: Site):
    client = session(site, site.token)
    assert site.token not in client.get(site.url, timeout=30).text
    cookie = client.cookies.get_dict()["cog_finetune_session"].strip('"')
    key, expiry, signature = cookie.split(".")
    later = f"{key}.{int(expiry) + 9}.{signature}"
    for forged in ("", key, later, f"{key}.{expiry}.", f"{key}.x.{signature}", "..", "é"):
        headers = {"Cookie": f"cog_finetune_session={forged}".encode()}
        answer = requests.get(site.url, headers=headers, allow_redirects=False, timeout=30)
        assert answer.status_code == 303
    for origin in ("http://elsewhere.example", "null"):
        answer = client.post(f"{site.url}/create", headers={"Origin": origin}, timeout=30)
        assert answer.status_code == 403
    answer = client.get(site.url, timeout=30)
    assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Frame-Options"] == "DENY"
    wrong = client.post(f"{site.url}/sign-in", data={"token": "r8_no"}, timeout=30)
    assert wrong.status_code == 403
    elsewhere = f"{site.url}/sign-in?next=//elsewhere.example"
    answer = client.post(elsewhere, data={"token": site.token}, timeout=30, allow_redirects=False)
    assert answer.headers["Location"] == "/"
    client.post(f"{site.url}/sign-out", timeout=30)
    assert "/sign-in" in client.get(site.url, timeout=30).url
