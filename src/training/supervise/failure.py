"""Why a run failed: which rank was the first, and what ended it, in one sentence."""

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from src.errors import UserError
from src.training.supervise.run_folder import RunFolder

if TYPE_CHECKING:  # the supervisor loads no torch
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

USER_ERROR, KILLED, CANCELED, ERROR, ENDED = range(5)
"""How near to the cause a failure is: ranks that lose one of them fail with an error of their own,
and then the rest is ended."""

SHARE_SECONDS = 6.0
"""Time for the other machines to tell what ended them."""


class TrainingError(RuntimeError):
    """A run that failed, with the rank and its last error in one sentence."""


@dataclass(frozen=True, order=True)
class Failure:
    """What ended a rank or a machine; the least of several is nearest to the cause."""

    sentence: str = field(compare=False)
    kind: int
    time: float = field(default_factory=time.time)

    def error(self) -> Exception:
        """Return it as what `train()` raises."""
        return (UserError if self.kind == USER_ERROR else TrainingError)(self.sentence)


def first_failure(exits: Mapping[int, "ProcessFailure"], folder: RunFolder) -> Failure:
    """Return the failure of the rank that failed first, of torch's failures by rank.

    Torch tells the time of an exit in whole seconds, within which other ranks fail for want of the
    first. What they report is an error, while a killed process reports nothing.
    """
    statuses, errors = folder.statuses(), folder.errors()
    failures = []
    for rank, ended in exits.items():
        code, status = ended.exitcode, statuses.get(ended.local_rank, {})
        place = f"rank {status.get('rank', rank)}", after_step(status.get("step", 0))
        if error := errors.get(ended.local_rank):
            failures.append(_reported(error))
        elif code == -signal.SIGTERM:  # the agent ends the ranks that are left
            sentence = "{} was ended {}".format(*place)
            failures.append(Failure(sentence, ENDED, ended.timestamp))
        else:
            failures.append(Failure(describe_exit(*place, code), KILLED, ended.timestamp))
    return min(failures)


def failure_without_agent(exit_code: int | None, folder: RunFolder) -> Failure:
    """Return why a run ended whose agent reported nothing."""
    if errors := folder.errors():
        return min(_reported(error) for error in errors.values())
    step = min((status["step"] for status in folder.statuses().values()), default=0)
    return Failure(describe_exit("the agent of the ranks", after_step(step), exit_code), KILLED)


def describe_exit(who: str, place: str, code: int | None) -> str:
    """Return how a process ended that reported nothing."""
    if code is None:
        return f"{who} was ended {place}"
    if code >= 0:
        return f"{who} ended {place} with exit code {code}; its last words are in the log above"
    hint = " (often: the machine ran out of memory)" if code == -signal.SIGKILL else ""
    return f"{who} was killed by {signal.Signals(-code).name} {place}{hint}"


def after_step(step: int) -> str:
    """Return how far a run had come."""
    return f"after step {step}" if step else "before its first step ended"


def _reported(error: dict[str, Any]) -> Failure:
    if error["is_user_error"]:
        return Failure(error["error"], USER_ERROR, error["time"])
    sentence = f"rank {error['rank']} failed {after_step(error['step'])}: {error['error']}"
    return Failure(sentence, ERROR, error["time"])
