"""The states of runs only move forward, each run ends once, and nobody sees another's."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from src.service.store.database import Database, Place
from src.service.store.ids import new_id
from src.service.store.models import add_base_models, base_model_name, list_models, visible_version
from src.service.store.runs import (
    Run,
    create_run,
    end_run,
    find_run,
    list_runs,
    remove_data,
    start_run,
    unfinished_runs,
)

MODEL = base_model_name("llama-2-7b")


def make_run(database: Database, owner: str = "ann", **values: Any) -> Run:
    row = {"kind": "prediction", "owner": owner, "model": MODEL, "version": "v", "input": {}}
    return database.write_now(create_run, {**row, "base_url": "http://x", **values})


def test_states_only_move_forward(database: Database):
    run = make_run(database)
    assert run.status == "starting"
    assert database.write_now(start_run, run.id).status == "processing"
    assert database.write_now(start_run, run.id) is None
    ended = database.write_now(end_run, run.id, "succeeded")
    assert ended.completed_at >= ended.started_at >= ended.created_at
    for status in ("failed", "canceled", "succeeded"):
        assert database.write_now(end_run, run.id, status) is None
    assert database.write_now(start_run, run.id) is None
    assert database.read_now(find_run, run.id) == ended


def test_of_many_ends_at_once_one_counts(database: Database):
    run = make_run(database)

    def end(number: int) -> Run | None:
        return database.write_now(lambda c: end_run(c, run.id, "failed", error=str(number)))

    with ThreadPoolExecutor(8) as threads:
        ends = [row for row in threads.map(end, range(16)) if row is not None]
    assert len(ends) == 1
    assert database.read_now(find_run, run.id).error == ends[0].error


def test_pages_hold_each_run_of_an_owner_once(database: Database):
    owner, other = new_id(), new_id()
    made = [make_run(database, owner).id for _ in range(7)]
    make_run(database, other)
    seen: list[str] = []
    place = None
    while True:
        rows = database.read_now(
            lambda c, place=place: list_runs(c, owner, "prediction", limit=3, place=place)
        )
        if not rows:
            break
        seen += [row.id for row in rows]
        place = Place(rows[-1].created_at, rows[-1].id)
    assert seen == made[::-1]
    back = Place(place.created_at, place.name, is_before=True)
    rows = database.read_now(lambda c: list_runs(c, owner, "prediction", limit=3, place=back))
    assert [row.id for row in rows] == made[1:4][::-1]


def test_a_run_is_found_by_its_owner_alone(database: Database):
    run = make_run(database, "ann")
    assert database.read_now(find_run, run.id, "ann") == run
    assert database.read_now(find_run, run.id, "bob") is None


def test_what_has_not_ended_is_found_again(database: Database):
    waiting, running, ended = (make_run(database) for _ in range(3))
    database.write_now(start_run, running.id)
    database.write_now(end_run, ended.id, "canceled")
    found = {row.id for row in database.read_now(unfinished_runs, "prediction")}
    assert {waiting.id, running.id} <= found
    assert ended.id not in found


def test_odd_text_is_kept_or_made_harmless(database: Database):
    run = make_run(database, input={"prompt": "\u2028 \ud83d\ude00 '"})
    row = database.write_now(
        lambda c: end_run(c, run.id, "failed", error="a\0b", logs="c\0d", output=["\u2028"])
    )
    assert (row.error, row.logs, row.output) == ("ab", "cd", ["\u2028"])
    database.write_now(remove_data, run.id)
    row = database.read_now(find_run, run.id)
    assert (row.input, row.output, row.logs, row.data_removed) == ({}, None, "", True)


def test_base_models_are_everybodys_and_are_added_once(database: Database):
    for _ in range(2):
        database.write_now(add_base_models, "smollm2-135m-instruct")
    models = database.read_now(lambda c: list_models(c, "ann", limit=100))
    names = [f"{model.owner}/{model.name}" for model in models]
    assert len(names) == len(set(names))
    assert {"meta/llama-2-7b-chat", "mistralai/mistral-7b-instruct-v0.2"} <= set(names)
    found = database.read_now(lambda c: list_models(c, "ann", limit=9, search="70b CHAT"))
    assert [model.name for model in found] == ["llama-2-70b-chat"]
    assert database.read_now(visible_version, "0" * 64, "ann") is None
