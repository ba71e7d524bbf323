"""A process whose engine has stopped answers nothing any more: it ends, so that others notice."""

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from src.serving.predictor import TextPredictor

LOOK_SECONDS = 1.0


def end_with_engine(predictor: "TextPredictor") -> None:
    """Have this process end after its engine: whoever started it can start another."""
    threading.Thread(target=_watch, args=(predictor,), name="watch", daemon=True).start()


def _watch(predictor: "TextPredictor") -> None:
    while True:
        time.sleep(LOOK_SECONDS)
        try:
            predictor.check_alive()
        except RuntimeError as error:
            print(error, file=sys.stderr, flush=True)
            time.sleep(LOOK_SECONDS)  # for the last answers to go out
            os._exit(1)
