"""What `cog train` and `cog predict` do, without Docker: one request to Cog's own server.

`python -m src.cli.client train DATA.jsonl [-i name=value ...] [-o weights.tar]`
`python -m src.cli.client predict -i prompt=... [-w weights.tar]`
"""

import base64
import os
import signal
import sys
import time
from argparse import Namespace
from contextlib import redirect_stdout
from typing import Any

import requests

from src.cli.arguments.command import parse_command
from src.cli.arguments.inputs import local_weights, parse_inputs
from src.cli.arguments.output_file import find_output
from src.cli.file_server import file_server
from src.cli.follow import follow_training, stream_answer
from src.cli.schema import build_schema
from src.cli.server import running_server
from src.cli.server_http import RequestError
from src.environment import read_train_environment
from src.errors import UserError
from src.files.atomic import replacing_file
from src.files.printable import printable
from src.training.plan.dry_run import plan_training
from src.training.plan.preview import preview_examples
from src.weights.base_model.base_model import find_base_model


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options = parse_command(arguments)
        (_train if options.mode == "train" else _predict)(options)
    except (UserError, RequestError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except requests.RequestException:
        print("error: the server is gone (often: the machine ran out of memory)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("canceled", file=sys.stderr)
        return 130
    except BrokenPipeError:  # such as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _predict(options: Namespace) -> None:
    inputs = parse_inputs(options.input, _properties("Input"))
    if options.weights is not None:
        os.environ["COG_WEIGHTS"] = local_weights(options.weights)
    with redirect_stdout(sys.stderr):
        find_base_model(os.environ)  # not in the server, where nobody sees that it is fetched
    with running_server("predict", verbose=options.verbose) as address:
        for piece in stream_answer(address, inputs):
            print(piece, end="", flush=True)
    print()


def _train(options: Namespace) -> None:
    num_nodes = read_train_environment(os.environ).num_nodes
    inputs = parse_inputs(options.input, _properties("TrainingInput"), may_lack_files=num_nodes > 1)
    if options.plan or options.preview:
        data = inputs["train_data"]
        if isinstance(data, str) and num_nodes == 1:
            option = "--plan" if options.plan else "--preview"
            hint = f"fetch it: curl -LO {printable(data, 200)}"
            raise UserError(f"{option}: expected a file here, found a URL; {hint}")
        if options.preview:
            in_color = sys.stdout.isatty()
            print(*preview_examples(inputs, options.preview, in_color=in_color), sep="\n")
        if options.plan:
            print(*plan_training(inputs), sep="\n")
        return
    started = time.monotonic()
    output = find_output(options.output, inputs["train_data"])
    with (
        file_server(inputs) as (served, events, hook),
        running_server("train", verbose=options.verbose) as address,
    ):
        request = {
            "input": served,
            "webhook": hook,
            "webhook_events_filter": ["logs", "completed"],
        }
        result = follow_training(address, request, events)
    weights = result["output"]["weights"]
    if weights is None:
        return  # the log names the machine that has them
    try:
        with replacing_file(output) as partial:
            partial.write_bytes(base64.b64decode(weights.partition("base64,")[2], validate=True))
    except OSError as error:
        raise RequestError(f"cannot write the weights to {output}: {error.strerror}") from None
    size = output.stat().st_size / 1e6
    print(f"weights: {output} ({size:.1f} MB) after {time.monotonic() - started:.0f} s", flush=True)


def _properties(name: str) -> dict[str, Any]:
    return build_schema()["components"]["schemas"][name]["properties"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
