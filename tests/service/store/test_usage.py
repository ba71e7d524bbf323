"""What an owner has stored and unfinished is what the rows say, whatever has happened to them."""

import random

from src.service.store.database import Database
from src.service.store.file_rows import add_file, delete_file, fill_file
from src.service.store.ids import new_id
from src.service.store.models import add_version, create_model, delete_version
from src.service.store.runs import create_run, end_run, remove_data
from src.service.store.usage import count_usage, find_usage


def test_counts_are_what_a_new_count_gives(database: Database):
    rng, owners = random.Random(1), (new_id(), new_id())
    for owner in owners:
        model = {"owner": owner, "name": "m", "visibility": "private", "is_base": False}
        database.write_now(create_model, model)
    made: dict[str, list[str]] = {"run": [], "file": [], "version": []}

    def add(kind: str) -> None:
        owner = rng.choice(owners)
        match kind:
            case "run":
                values = {"owner": owner, "model": f"{owner}/m", "version": "v", "base_url": "x"}
                values |= {"kind": "prediction", "input": {"prompt": "?" * rng.randrange(99)}}
                made[kind].append(database.write_now(create_run, values).id)
            case "file":
                values = {"owner": owner, "name": "f", "content_type": "text", "api": "replicate"}
                size = rng.choice([None, rng.randrange(999)])
                made[kind].append(database.write_now(add_file, {**values, "size": size}).id)
            case "version":
                name = f"{len(made[kind])}"
                database.write_now(
                    lambda c: add_version(c, owner, "m", name, size=rng.randrange(99))
                )
                made[kind].append(name)

    for number in range(120):
        kind = rng.choice([*made])
        if number < 9 or rng.random() < 0.5:
            add(kind)
        elif made[kind]:
            name = rng.choice(made[kind])
            match kind, rng.random() < 0.5:
                case "run", True:
                    logs = "l" * rng.randrange(99)
                    database.write_now(lambda c, n=name, t=logs: end_run(c, n, "failed", logs=t))
                case "run", False:
                    database.write_now(remove_data, name)
                case "file", True:
                    database.write_now(fill_file, name, {"size": rng.randrange(999)})
                case "file", False:
                    database.write_now(delete_file, name)
                case "version", _:
                    database.write_now(delete_version, name)
    kept = [database.read_now(find_usage, owner) for owner in owners]
    database.write_now(count_usage)
    assert [database.read_now(find_usage, owner) for owner in owners] == kept
    assert all(stored > 0 and unfinished > 0 for stored, unfinished in kept)
