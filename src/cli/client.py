"""What `cog train` and `cog predict` do, without Docker: one request to Cog's own server.

`python -m src.cli.client train DATA.jsonl [-i name=value ...] [-o weights.tar]`
`python -m src.cli.client predict -i prompt=... [-w weights.tar]`
"""

import argparse
import base64
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import requests

from src.cli.file_server import file_server
from src.cli.follow import follow_training, stream_answer
from src.cli.inputs import existing_file, parse_inputs
from src.cli.schema import build_schema
from src.cli.server import running_server
from src.cli.server_http import RequestError
from src.environment import read_train_environment
from src.errors import UserError
from src.files.atomic import replacing_file
from src.training.plan.dry_run import plan_training


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        schema = build_schema()["components"]["schemas"]
        if options.mode == "train":
            pairs = [f"train_data={options.data}", *options.input]
            num_nodes = read_train_environment(os.environ).num_nodes
            inputs = parse_inputs(
                pairs, schema["TrainingInput"]["properties"], may_lack_files=num_nodes > 1
            )
            if options.plan:
                print(*plan_training(inputs), sep="\n")
                return 0
            _train(inputs, Path(options.output), verbose=options.verbose)
        else:
            inputs = parse_inputs(options.input, schema["Input"]["properties"])
            if options.weights is not None:
                os.environ["COG_WEIGHTS"] = _weights_source(options.weights)
            with running_server("predict", verbose=options.verbose) as address:
                for piece in stream_answer(address, inputs):
                    print(piece, end="", flush=True)
            print()
    except (UserError, RequestError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except requests.RequestException:
        print("error: the server is gone (often: the machine ran out of memory)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("canceled", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts")
    modes = parser.add_subparsers(dest="mode", required=True)
    train = modes.add_parser("train", prog="scripts/train", description="Train on a JSONL file")
    train.add_argument("data", help="JSONL file")
    train.add_argument("-o", "--output", default="weights.tar", help="where to put the weights")
    train.add_argument("--plan", action="store_true", help="print what would be done, and stop")
    predict = modes.add_parser("predict", prog="scripts/predict", description="Answer a prompt")
    predict.add_argument("-w", "--weights", help="fine-tuned weights: a file, folder or URL")
    for mode in (train, predict):
        mode.add_argument("-i", "--input", action="append", default=[], metavar="name=value")
        mode.add_argument("--verbose", action="store_true", help="show the server's own log")
    return parser


def _train(inputs: dict[str, Any], output: Path, *, verbose: bool) -> None:
    started = time.monotonic()
    if not output.parent.is_dir():
        raise UserError(f"-o: there is no folder {output.parent}")
    with (
        file_server(inputs) as (served, events, hook),
        running_server("train", verbose=verbose) as address,
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
    with replacing_file(output) as partial:
        partial.write_bytes(base64.b64decode(weights.partition("base64,")[2], validate=True))
    size = output.stat().st_size / 1e6
    print(f"weights: {output} ({size:.1f} MB) after {time.monotonic() - started:.0f} s", flush=True)


def _weights_source(name: str) -> str:
    """Return a URL as it is and a path as the server, which runs elsewhere, will find it."""
    if "://" in name or name[:5].lower() == "data:":
        return name
    path = Path(name) if os.path.isdir(name) else existing_file(name, "-w")
    return str(path.resolve())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
