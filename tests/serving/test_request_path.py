"""A plain request passes few modules, so that its way can be read."""

import sys
import threading
from pathlib import Path
from types import FrameType

import src.serving
from src.serving.predictor import TextPredictor
from tests.serving.request import REQUEST

ROOT = Path(src.serving.__file__).parent
MAX_MODULES = 25


def test_a_plain_request_passes_few_modules(base_dir: Path, monkeypatch):
    """Those of which a function runs between a prompt and its text, on any thread."""
    monkeypatch.setenv("BASE_MODEL", str(base_dir))
    passed: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        passed.add(frame.f_code.co_filename)

    # Threads that have started are not traced: those of the predictor start here.
    threading.settrace(note)
    sys.settrace(note)
    try:
        predictor = TextPredictor(None)
        passed.clear()
        answer = "".join(predictor.stream(REQUEST, record_metric=lambda *_: None))
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
    assert answer
    modules = sorted(
        Path(name).relative_to(ROOT).as_posix() for name in passed if name.startswith(str(ROOT))
    )
    assert len(modules) <= MAX_MODULES, "\n".join(modules)
    assert "engine/scheduler.py" in modules
