"""What clients of the service were told, and whether it has kept to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from src.service.work.predictions import CUT_OFF

STATES = ("starting", "processing", "succeeded", "failed", "canceled", "aborted")
FINAL = STATES[2:]


@dataclass
class Accepted:
    """A run that a client has seen accepted."""

    owner: str
    kind: str
    answer: str | None = None
    """What a prediction is to say."""
    webhook: bool = False
    is_canceled: bool = False
    """Whether its client has asked for that."""
    seen: dict[str, Any] = field(default_factory=dict)
    """As it was last shown."""


class Ledger:
    """Every run that was accepted, as it was last seen; what is wrong is a sentence each."""

    def __init__(self) -> None:
        self.runs: dict[str, Accepted] = {}
        self.files: dict[str, bytes] = {}
        """Uploaded bytes by the address that reads them."""
        self.problems: list[str] = []

    def accept(self, run: Mapping[str, Any], accepted: Accepted) -> None:
        """Note a run that the service has answered for with 201."""
        if run["id"] in self.runs:
            self.problems.append(f"{run['id']}: given twice")
        self.runs[run["id"]] = accepted
        self.see(run)

    def see(self, run: Mapping[str, Any]) -> None:
        """Compare what is shown of a run with what was shown before."""
        accepted = self.runs[run["id"]]
        before = accepted.seen.get("status", "starting")
        if before in FINAL and run != accepted.seen:
            self.problems.append(f"{run['id']}: changed after its end, {accepted.seen} to {run}")
        elif STATES.index(run["status"]) < STATES.index(before):
            self.problems.append(f"{run['id']}: went from {before} back to {run['status']}")
        accepted.seen = dict(run)

    def unfinished(self) -> list[str]:
        """Return the runs that were not seen in a final state."""
        return [id for id, run in self.runs.items() if run.seen["status"] not in FINAL]

    def check_ends(self, *, num_kills: int) -> None:
        """Note every run whose end is not what it must be."""
        for id, run in self.runs.items():
            status, error = run.seen["status"], run.seen["error"]
            match status:
                case "succeeded" if run.kind == "prediction":
                    is_right = "".join(run.seen["output"]) == run.answer
                case "succeeded":
                    is_right = bool(run.seen["output"]["weights"])
                case "canceled":
                    is_right = run.is_canceled
                case "failed":
                    is_right = num_kills > 0 and run.kind == "prediction" and error == CUT_OFF
                case _:
                    is_right = False
            if not is_right:
                shown = f"{run.seen['output']}"[:200]
                self.problems.append(f"{id} ({run.kind}): {status}, {error}, {shown}")

    def check_webhooks(self, received: Mapping[str, list[dict[str, Any]]]) -> None:
        """Note every run whose webhook was not told of its end, or of two different ones."""
        for id, run in self.runs.items():
            told = [body for body in received.get(id, []) if body["completed_at"]]
            ends = {(body["status"], body["completed_at"]) for body in told}
            if run.webhook and ends != {(run.seen["status"], run.seen["completed_at"])}:
                self.problems.append(f"{id}: its webhook was told of {ends or 'no end'}")

    def counts(self) -> dict[str, int]:
        """Return how many runs have ended in each way."""
        found: dict[str, int] = {}
        for run in self.runs.values():
            name = f"{run.kind}s {run.seen['status']}"
            found[name] = found.get(name, 0) + 1
        return dict(sorted(found.items()))
