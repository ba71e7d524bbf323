"""No route, of either API or of the page, tells or changes another owner's things."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
from starlette.routing import Route

from benchmarks.service.strangers import answers_to_strangers, things_of
from src.service.page.routes import page_routes
from src.service.store.ids import new_id
from src.service.store.models import add_version
from tests.conftest import ROWS
from tests.service.serving import Served, serving

MODEL = {"owner": "ann", "name": "tuned", "visibility": "private", "hardware": "cpu"}
CHAT = "meta/llama-2-7b-chat"


async def have_one_of_each(served: Served) -> None:
    """Make one thing of each kind that an owner can have."""
    ann, database = served.ann, served.service.database
    rows = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    answers = [
        await ann.post("/v1/models", json=MODEL),
        await ann.post("/v1/predictions", json={"version": CHAT, "input": {"prompt": "?"}}),
        file := await ann.post("/v1/files", files={"content": ("data.jsonl", rows)}),
        uploaded := await ann.post(
            "/openai/v1/files", files={"file": ("data.jsonl", rows)}, data={"purpose": "fine-tune"}
        ),
    ]
    version = (await ann.get(f"/v1/models/{CHAT}")).json()["latest_version"]["id"]
    training = {"destination": "ann/tuned", "input": {"train_data": file.json()["urls"]["get"]}}
    job = {"model": "llama-2-7b-chat", "training_file": uploaded.json()["id"]}
    answers += [
        await ann.post(f"/v1/models/{CHAT}/versions/{version}/trainings", json=training),
        await ann.post("/openai/v1/fine_tuning/jobs", json=job),
    ]
    assert all(answer.is_success for answer in answers), [answer.text for answer in answers]
    await database.write(
        lambda c: add_version(c, "ann", "tuned", new_id(), weights="weights-x", alias="ft:tuned")
    )


def page_paths(things: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the method and the path of each route of the page that names a thing."""
    for route in page_routes():
        if isinstance(route, Route) and "{" in route.path:
            ids = (things["predictions"], things["trainings"]) if "{id}" in route.path else ("",)
            for value in ids:
                values = {**things, "id": value, "owner:page_owner": things["owner"]}
                path = re.sub(r"\{([^}]*)\}", lambda part, v=values: v[part[1]], route.path)
                for method in sorted((route.methods or set()) - {"HEAD"}):
                    yield method, path


def test_no_api_answers_with_what_is_another_owners(tmp_path: Path):
    async def run() -> None:
        async with serving(tmp_path) as served:
            await have_one_of_each(served)
            with (
                httpx.Client(base_url=served.url, headers=served.ann.headers) as ann,
                httpx.Client(base_url=served.url, headers=served.bob.headers) as bob,
            ):
                things = await asyncio.to_thread(things_of, ann, "ann")
                assert "none" not in things.values()
                told = await asyncio.to_thread(lambda: list(answers_to_strangers(bob, things)))
                assert told == []
                assert await asyncio.to_thread(things_of, ann, "ann") == things
                # Who asks for their own is answered: a stranger is refused as one.
                assert await asyncio.to_thread(lambda: any(answers_to_strangers(ann, things)))

    asyncio.run(run())


def test_no_page_shows_or_changes_what_is_another_owners(tmp_path: Path):
    async def run() -> None:
        async with serving(tmp_path) as served:
            await have_one_of_each(served)
            with httpx.Client(base_url=served.url, headers=served.ann.headers) as client:
                things = await asyncio.to_thread(things_of, client, "ann")
            for client in (served.ann, served.bob):
                client.headers["Origin"] = served.url
                token = client.headers.pop("Authorization").removeprefix("Bearer ")
                await client.post("/sign-in", data={"token": token})
            paths = list(page_paths(things))
            assert len(paths) > 8
            for method, path in paths:
                answer = await served.bob.request(method, path)
                assert answer.status_code == 404, (method, path, answer.text)
                if method == "GET":
                    assert (await served.ann.get(path)).status_code == 200
            kinds = ("predictions", "trainings", "files", "openai_files", "version")
            forms = {"left": things["version"], "train_data": things["files"], "prompt": "?"}
            query = f"?left={things['predictions']}&train_data={things['files']}"
            for path in ("/", "/state", "/create", "/new", "/uploads", "/runs", "/playground"):
                answer = await served.bob.get(path + query)
                assert not any(things[kind] in answer.text for kind in kinds), path
            for path in ("/playground", "/new", "/new/report"):
                answer = await served.bob.post(path, data={**forms, "destination": "tuned"})
                assert answer.status_code in (200, 404, 422), (path, answer.text)
                assert "ann" not in re.sub(r"[a-z]*ann[a-z]+", "", answer.text), path
            assert (await served.ann.get(f"/runs/{things['predictions']}")).status_code == 200

    asyncio.run(run())
