"""Why a job or a request of it failed, for whoever asked for it."""

import traceback

from src.errors import RankLost, UserError
from src.training.supervise.failure import TrainingError


def describe_failure(error: Exception) -> str:
    """Return an error as a sentence; where it is not one already, stderr gets the traceback."""
    if isinstance(error, UserError | TrainingError | RankLost):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"
