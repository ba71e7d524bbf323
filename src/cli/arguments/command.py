"""The command lines of `scripts/train` and `scripts/predict`, and what to type in place of one."""

import argparse
import shlex
from collections.abc import Sequence
from typing import NoReturn

from src.errors import UserError
from src.files.printable import printable

USAGE = {
    "train": "scripts/train DATA.jsonl [-i name=value ...] [-o weights.tar]",
    "predict": "scripts/predict -i prompt=... [-i name=value ...] [-w weights.tar]",
}


def parse_command(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command; the file of a training is among the inputs, as Cog has it.

    Raises UserError that says what to type.
    """
    options, others = _parser().parse_known_args(arguments)
    if others:
        raise UserError(_instead(options.mode, others[0], arguments))
    if options.mode == "train":
        names = [pair.partition("=")[0] for pair in options.input]
        if options.data is not None:
            options.input.insert(0, f"train_data={options.data}")
        if (options.data is not None) + names.count("train_data") != 1:
            raise UserError(f"expected one file of examples: {USAGE['train']}")
    return options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise a UserError in place of an exit."""
        raise UserError(f"{message}; expected {USAGE[self.prog.rpartition('/')[2]]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts")
    modes = parser.add_subparsers(dest="mode", required=True, parser_class=_Parser)
    train = modes.add_parser("train", prog="scripts/train", description="Train on a JSONL file")
    train.add_argument("data", nargs="?", help="JSONL file")
    train.add_argument(
        "-o", "--output", default="weights.tar", help="where to put the weights: a file or folder"
    )
    train.add_argument("--plan", action="store_true", help="print what would be done, and stop")
    train.add_argument(
        "--preview",
        type=_count,
        metavar="N",
        help="show the first N examples as the model reads them, and stop",
    )
    predict = modes.add_parser("predict", prog="scripts/predict", description="Answer a prompt")
    predict.add_argument("-w", "--weights", help="fine-tuned weights: a file, folder or URL")
    for mode in (train, predict):
        mode.allow_abbrev = False
        mode.add_argument("-i", "--input", action="append", default=[], metavar="name=value")
        mode.add_argument("--verbose", action="store_true", help="show the server's own log")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number of examples, found {text!r:.40}")
    return int(text)


def _instead(mode: str, found: str, arguments: Sequence[str]) -> str:
    """Return what to type in place of an argument that is none."""
    shown = printable(found, 60)
    if found.startswith("--"):
        name, _, value = found[2:].partition("=")
        following = arguments[list(arguments).index(found) + 1 :]
        if not value and following and not following[0].startswith("-"):
            value = following[0]
        pair = printable(f"{name.replace('-', '_')}={value or 'VALUE'}", 60)
        return f"{shown}: there is no such option; an input is given as -i {shlex.quote(pair)}"
    if found.startswith("-"):
        return f"{shown}: there is no such option; expected {USAGE[mode]}"
    if mode == "predict":
        return f"the prompt is an input: scripts/predict -i prompt={shlex.quote(shown)}"
    return f"{shown}: expected one file of examples; cat A.jsonl B.jsonl > all.jsonl joins two"
