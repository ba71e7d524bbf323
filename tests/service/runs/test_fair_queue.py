"""The queue keeps each owner's order and gives all owners their turn."""

from src.service.runs.fair_queue import FairQueue


def test_who_has_least_at_work_is_next():
    queue = FairQueue()
    for number in range(4):
        queue.put("ann", f"ann-{number}")
    queue.put("bob", "bob-0")
    assert [queue.take() for _ in range(5)] == ["ann-0", "bob-0", "ann-1", "ann-2", "ann-3"]
    assert queue.take() is None
    assert (len(queue), queue.num_taken) == (0, 5)


def test_what_ends_makes_room_for_its_owner():
    queue = FairQueue()
    for owner in ("ann", "bob"):
        for number in range(3):
            queue.put(owner, f"{owner}-{number}")
    assert [queue.take(), queue.take()] == ["ann-0", "bob-0"]
    queue.give_back("bob-0")
    assert queue.take() == "bob-1"


def test_no_owner_has_more_than_may_be():
    queue = FairQueue()
    for number in range(3):
        queue.put("ann", f"ann-{number}")
    assert [queue.take(2) for _ in range(3)] == ["ann-0", "ann-1", None]
    queue.put("bob", "bob-0")
    assert queue.take(2) == "bob-0"
    queue.give_back("ann-0")
    assert queue.take(2) == "ann-2"
