"""The engine's job, in which the engine's thread dies at its next step.

`python -m tests.jobs.dying_engine`
"""

import asyncio
import ctypes
import threading

from src.jobs import engine
from src.serving.predictor import TextPredictor

load = engine.load_predictor


def load_and_strike() -> TextPredictor:
    """Load the predictor, and have an error raised in its engine's thread."""
    predictor = load()
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "engine")
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    raise_in(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyError))
    return predictor


if __name__ == "__main__":
    engine.load_predictor = load_and_strike
    asyncio.run(engine.main())
