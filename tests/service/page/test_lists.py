"""The page's lists: all runs page by page, and files that are deleted there."""

import asyncio
import re
from pathlib import Path

import httpx

from src.service.store.runs import create_run
from tests.service.serving import Served, serving

NUM_RUNS = 230


async def sign_in(served: Served) -> httpx.AsyncClient:
    """Return ann's client as a browser that is signed in."""
    token = served.ann.headers.pop("Authorization").removeprefix("Bearer ")
    served.ann.headers["Origin"] = served.url
    assert (await served.ann.post("/sign-in", data={"token": token})).status_code == 303
    return served.ann


def test_the_links_to_older_and_newer_runs_lead_through_all_of_them(tmp_path: Path):
    async def run() -> None:
        async with serving(tmp_path) as served:
            values = {
                "kind": "prediction", "owner": "ann", "model": "meta/llama-2-7b", "version": "v",
                "input": {"prompt": "?"}, "base_url": served.url,
            }  # fmt: skip
            write = served.service.database.write_now
            made = [write(create_run, values).id for _ in range(NUM_RUNS)]
            browser = await sign_in(served)
            assert 'href="/runs?kind=prediction"' in (await browser.get("/")).text

            async def read(path: str) -> tuple[list[str], dict[str, str]]:
                text = (await browser.get(path)).text.replace("&amp;", "&")
                turns = dict(re.findall(r'rel="(\w+)" href="([^"]+)"', text))
                return re.findall(r'href="/runs/(\w+)"', text), turns

            runs, turns = await read("/runs?kind=prediction")
            first, found = runs, [*runs]
            assert "prev" not in turns
            while "next" in turns:
                back = turns["next"]
                runs, turns = await read(back)
                found += runs
            assert found == made[::-1]
            while "prev" in turns:
                runs, turns = await read(turns["prev"])
            assert runs == first
            assert (await read("/runs"))[0] == []

    asyncio.run(run())


def test_all_files_of_an_owner_are_listed_and_deleted_with_what_they_count(tmp_path: Path):
    async def run() -> None:
        async with serving(tmp_path, stored_bytes=5_000_000) as served:
            await served.ann.post("/v1/files", files={"content": ("a <b>.jsonl", bytes(1_000_000))})
            form = {"purpose": "fine-tune"}
            file = {"file": ("openai.jsonl", bytes(2_000_000))}
            await served.ann.post("/openai/v1/files", data=form, files=file)
            begun = await served.ann.post("/v1/upload/never.jsonl")
            assert begun.is_success
            browser = await sign_in(served)
            text = (await browser.get("/uploads")).text
            assert "3.0 MB of 5.0 MB are stored" in text
            assert "a &lt;b&gt;.jsonl" in text
            assert "never.jsonl" not in text
            paths = re.findall(r'action="(/uploads/[\w-]+/delete)"', text)
            assert len(paths) == 2
            for path in paths:
                assert (await served.bob.post(path)).status_code in (303, 404)
                assert (await browser.post(path)).status_code == 303
            text = (await browser.get("/uploads")).text
            assert "openai.jsonl" not in text
            assert "0.0 MB of 5.0 MB are stored" in text

    asyncio.run(run())
