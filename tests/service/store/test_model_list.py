"""Models are listed in the order that is asked for, page by page."""

import asyncio
from pathlib import Path

import pytest

from src.service.store.database import Database, Place
from src.service.store.ids import new_id
from src.service.store.models import add_version, create_model, list_models
from tests.service.serving import serving


@pytest.mark.parametrize("by_version", [True, False])
@pytest.mark.parametrize("oldest_first", [True, False])
def test_pages_in_either_direction_hold_all_models_in_their_order(
    database: Database, by_version: bool, oldest_first: bool
):
    owner = new_id()
    for name in "abcdefg":
        values = {"owner": owner, "name": name, "visibility": "private"}
        database.write_now(create_model, values)
    for name in "fbd":
        database.write_now(lambda c, n=name: add_version(c, owner, n, new_id()))
    expected = "acegfbd" if by_version else "abcdefg"
    if not oldest_first:
        expected = expected[::-1]

    def page(place: Place | None) -> list[tuple[str, str]]:
        rows = database.read_now(
            lambda c: list_models(
                c, owner, limit=3, place=place, search=owner,
                by_version=by_version, oldest_first=oldest_first,
            )
        )  # fmt: skip
        return [(row.listed_at, f"{row.owner}/{row.name}") for row in rows]

    found, pages = [], [page(None)]
    while pages[-1]:
        found += pages[-1]
        pages.append(page(Place(*pages[-1][-1])))
    assert [name.removeprefix(f"{owner}/") for _, name in found] == list(expected)
    assert page(Place(*found[6], is_before=True)) == found[3:6]
    assert page(Place(*found[3], is_before=True)) == found[0:3]


def test_the_order_is_one_that_the_api_knows(tmp_path: Path):
    async def run() -> None:
        async with serving(tmp_path) as served:
            query = {"sort_by": "model_created_at", "sort_direction": "asc"}
            models = (await served.ann.get("/v1/models", params=query)).json()["results"]
            newest_first = (await served.ann.get("/v1/models")).json()["results"]
            assert len(models) > 3
            assert models == newest_first[::-1]
            for name, expected in (
                ("sort_by", "latest_version_created_at or model_created_at"),
                ("sort_direction", "asc or desc"),
            ):
                answer = await served.ann.get("/v1/models", params={name: "up"})
                assert answer.status_code == 422
                assert answer.json()["detail"] == f"- {name}: expected {expected}, found 'up'\n"

    asyncio.run(run())
