"""A token that is removed opens nothing any more, and takes nothing with it."""

import asyncio
import time
from pathlib import Path

from src.service.store.tokens import add_token, remove_tokens
from tests.service.serving import serving

PREDICTION = {"version": "meta/llama-2-7b-chat", "input": {"prompt": "?"}}


def test_a_removed_token_is_refused_and_its_run_stays(tmp_path: Path):
    async def run() -> None:
        async with serving(tmp_path) as served:
            database = served.service.database
            made = (await served.ann.post("/v1/predictions", json=PREDICTION)).json()
            path = f"/v1/predictions/{made['id']}"
            browser = {"Origin": served.url}
            token = served.ann.headers["Authorization"].removeprefix("Bearer ")
            await served.ann.post("/sign-in", data={"token": token}, headers=browser)
            assert (await served.ann.get(f"/runs/{made['id']}")).status_code == 200
            await database.write(remove_tokens, "ann")
            deadline = time.monotonic() + 10
            while (await served.ann.get(path)).is_success:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            for method, refused in (
                ("GET", path), ("POST", f"{path}/cancel"), ("GET", "/openai/v1/models"),
            ):  # fmt: skip
                assert (await served.ann.request(method, refused)).status_code == 401
            page = await served.ann.get(f"/runs/{made['id']}")
            assert (page.status_code, page.headers["location"][:8]) == (303, "/sign-in")
            fresh = await database.write(add_token, "ann")
            served.ann.headers["Authorization"] = f"Bearer {fresh}"
            assert (await served.ann.get(path)).json()["status"] == "starting"

    asyncio.run(run())
