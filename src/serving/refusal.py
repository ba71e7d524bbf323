"""A training that was sent to a server that answers prompts."""

import functools
from collections.abc import Callable
from typing import Any

from src.errors import UserError


def refuse_trainings(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return `run` as Cog calls it, which for `/trainings` it does with a training's inputs."""

    @functools.wraps(run)
    def checked(**inputs: Any) -> Any:
        if "train_data" in inputs:
            raise UserError(
                "this server answers prompts; expected a training at a train server: "
                "`scripts/serve train`, in a container `python -m cog.server.http --x-mode train`"
            )
        return run(**inputs)

    return checked
