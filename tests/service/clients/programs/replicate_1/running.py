"""Python `replicate` 1.0: run and stream."""

import replicate
from check import (
    BREAKS,
    CHAT,
    FAILS,
    GUIDE_VERSION,
    PRINTED,
    SILENT,
    WORDS,
    check,
    main,
    raised,
    say,
    spoken,
)
from replicate.exceptions import ModelError
from replicate.helpers import FileOutput

VERSION = replicate.models.get(CHAT).latest_version.id
REFERENCE = f"{CHAT}:{VERSION}"


def done(**values):
    """Create a prediction, and return it at its end."""
    prediction = replicate.predictions.create(**values)
    prediction.wait()
    return prediction


def streamed(events):
    """Return text and last event of a stream whose events all have an id."""
    events = list(events)
    assert all(event.id for event in events)
    return "".join(str(event) for event in events), events[-1]


@check("run")
def run_by_name():
    """`run` of a name waits, and gives a plain list."""
    output = replicate.run(CHAT, input=say(WORDS))
    assert isinstance(output, list)
    assert "".join(output) == spoken(WORDS)


@check("run")
def run_by_version():
    """`run` of a version gives an iterator, for the schema's Output is one."""
    output = replicate.run(REFERENCE, input=say(WORDS))
    assert not isinstance(output, list)
    assert "".join(output) == spoken(WORDS)


@check("run")
def run_by_polling():
    """`run` with wait=False polls from the first chunk on."""
    assert "".join(replicate.run(REFERENCE, input=say(BREAKS), wait=False)) == spoken(BREAKS)


@check("run")
def run_the_guides_version():
    """The version that the guides print runs, and the log says that it is the current one."""
    assert "".join(replicate.run(PRINTED, input=say(WORDS))) == spoken(WORDS)
    prediction = done(version=GUIDE_VERSION, input=say(WORDS))
    assert GUIDE_VERSION[:8] in prediction.logs, prediction.logs


@check("run")
def run_fails():
    """A prediction that fails raises ModelError with one sentence."""
    error = raised(ModelError, replicate.run, CHAT, input=FAILS)
    assert "no-such-weights.tar" in str(error)
    assert error.prediction.status == "failed"


@check("run")
def run_keeps_addresses():
    """An answer that holds an address stays text."""
    address = "https://example.com/a.png"
    output = replicate.run(CHAT, input=say(address))
    assert not any(isinstance(chunk, FileOutput) for chunk in output)
    assert "".join(output) == spoken(address)


@check("stream")
def stream():
    """Streamed events make up the answer; each has an id, and the last is done."""
    text, last = streamed(replicate.stream(CHAT, input=say(WORDS)))
    assert text == spoken(WORDS)
    assert last.event.value == "done"


@check("stream")
def stream_by_version():
    """A version streams as its model does."""
    assert streamed(replicate.stream(REFERENCE, input=say(WORDS)))[0] == spoken(WORDS)


@check("stream")
def stream_of_breaks():
    """Characters at which the client ends lines are all that gets lost of a text."""
    text, _ = streamed(replicate.stream(CHAT, input=say(BREAKS)))
    assert text == spoken("onetwothreefour")


@check("stream")
def stream_fails():
    """A prediction that fails raises RuntimeError with the sentence."""
    error = raised(RuntimeError, lambda: list(replicate.stream(CHAT, input=FAILS)))
    assert "no-such-weights.tar" in str(error)


@check("stream")
def silent_stream():
    """A stream in which nothing comes for half a minute stays open."""
    error = raised(RuntimeError, lambda: list(replicate.stream(CHAT, input=SILENT)))
    assert "weights" in str(error)


@check("prediction.stream")
def late_stream():
    """A stream that is opened after the end has everything from the start."""
    prediction = done(version=VERSION, input=say(WORDS))
    text, last = streamed(prediction.stream())
    assert text == spoken(WORDS)
    assert last.event.value == "done"


main()
