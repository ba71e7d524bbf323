"""What the programs share: which checks there are, what is said, and one line of JSON for each.

A program runs in the environment of a client, so that nothing of this project is imported.
"""

import asyncio
import http.client
import json
import os
import sys
import time
import traceback
import urllib.request

API = os.environ["API"]
"""Address of the service, without /v1."""
CLIENT = os.environ["CLIENT"]
"""Short name of the client, for names of its own."""
OWNER = os.environ["OWNER"]
STRANGER = os.environ["STRANGER_TOKEN"]
"""The token of another owner."""
HASTY = os.environ["HASTY_TOKEN"]
"""The token of an owner who asks too often."""
TOO_LARGE = bytes(3_000_000)
"""More than the service takes for a file."""
RECEIVER = os.environ["RECEIVER"]
"""Address that takes webhooks, and gives them out again."""
DATA = os.environ["DATA"]
"""Path of a file of training examples."""
TRAINING = os.environ["TRAINING"]
"""Id of a training that ends well."""
CHAT, BASE = "meta/llama-2-7b-chat", "meta/llama-2-7b"
DESTINATION = f"{OWNER}/trained"
"""A model of the owner, for trainings."""
GUIDE_VERSION = "4841472f9a9d279cf03ba0a8f633b13eccd0e0a033d3af0c9b58830982d33132"
"""The version of BASE that the guides print."""
PRINTED = f"{BASE}:{GUIDE_VERSION}"
WORDS = "It is red, surely."
BREAKS = "one\u2028two\u2029three\u0085four"
"""Characters that some clients take for ends of lines."""
LONG = {"prompt": "Go on.", "min_new_tokens": 8000, "max_new_tokens": 8000, "temperature": 1}
"""A prediction that runs for many seconds."""
SILENT = {"prompt": "Hello", "replicate_weights": f"{RECEIVER}/slow/33"}
"""A prediction that says nothing for half a minute, and fails."""
ABORTED = os.environ["ABORTED"]
"""Id of a prediction whose deadline passed before it started."""
FAILS = {"prompt": "Hello", "replicate_weights": f"{RECEIVER}/no-such-weights.tar"}
"""A prediction that is accepted and fails."""

_checks = {}


def check(call, *, but=""):
    """Register a check of a call, for all versions of the client but those that are named."""

    def register(function):
        if os.environ["VERSION"] not in but.split():
            _checks[function.__name__] = function
        return function

    return register


def say(text, **more):
    """Return the input of a prediction whose answer is the text as JSON."""
    return {
        "prompt": "Say it.",
        "json_schema": json.dumps({"const": text}),
        "max_new_tokens": 500,
        **more,
    }


def spoken(text):
    """Return the answer to `say`."""
    return json.dumps(text, ensure_ascii=False)


def ask(url):
    """Return status, headers and bytes of a GET without any client and token."""
    with urllib.request.urlopen(url) as answer:
        return answer.status, answer.headers, answer.read()


def hooks(key, *, until, seconds=20):
    """Return the webhooks that came for a key, as soon as they fulfil a condition."""
    deadline = time.monotonic() + seconds
    while True:
        came = json.loads(ask(f"{RECEIVER}/hook/{key}")[2])
        if until(came):
            return came
        assert time.monotonic() < deadline, f"{len(came)} webhooks came: {came}"
        time.sleep(0.1)


def is_completed(came):
    """Whether the last webhook tells an end."""
    ends = ("succeeded", "failed", "canceled")
    return bool(came) and json.loads(came[-1]["body"])["status"] in ends


def raised(kind, function, *args, **values):
    """Return the error that a call raises."""
    try:
        result = function(*args, **values)
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, found {result!r}")


async def raised_async(kind, coroutine):
    """Return the error that an awaited call raises."""
    try:
        result = await coroutine
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, found {result!r}")


def until(condition, seconds=60):
    """Wait until a call returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"still {found!r} after {seconds} s"
        time.sleep(0.2)
    return found


def throttled(create):
    """Return the error of a call that creates, once its owner has asked too often.

    What was asked for fills up again all the time, so that a call may get through.
    """
    headers = {"Authorization": f"Bearer {HASTY}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(API.removeprefix("http://"))
    for _ in range(50):
        status = 0
        while status != 429:
            connection.request("POST", "/v1/predictions", "{}", headers)
            answer = connection.getresponse()
            answer.read()
            status = answer.status
        try:
            create()
        except Exception as error:
            return error
    raise AssertionError("expected a refusal in one of 50 calls")


def main():
    """Run the checks that are named on the command line, or all."""
    for name in sys.argv[1:] or _checks:
        started = time.monotonic()
        try:
            result = _checks[name]()
            if asyncio.iscoroutine(result):
                asyncio.run(result)
            found = None
        except Exception:
            found = traceback.format_exc()
        line = {"name": name, "found": found, "seconds": round(time.monotonic() - started, 2)}
        print(json.dumps(line), flush=True)
