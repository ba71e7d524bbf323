"""The clients that are run against the service, and the checks that each of them runs."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = Path(__file__).resolve().parent / "programs"
INSTALLED = ROOT / ".clients"
"""What `scripts/install-clients` makes."""


@dataclass(frozen=True)
class Client:
    """A version of a client."""

    name: str
    version: str
    folder: str
    """Of its programs."""
    needs: tuple[str, ...] = ()
    """Programs of the machine."""

    @property
    def slug(self) -> str:
        """A name for files and models."""
        return f"{self.folder}-{self.version}".replace(".", "-").replace("_", "-")

    def programs(self) -> list[Path]:
        """Return the programs that run its checks."""
        return sorted(path for path in (PROGRAMS / self.folder).iterdir() if path.is_file())

    def command(self, program: Path) -> list[str]:
        """Return what runs a program."""
        python = str(INSTALLED / "python" / "bin" / "python")
        return [{".py": python, ".mjs": "node", ".sh": "bash"}[program.suffix], str(program)]

    def environment(self, api: str) -> dict[str, str]:
        """Return the variables by which the client finds itself and the service."""
        own = INSTALLED / f"replicate-{self.version}"
        paths = [str(PROGRAMS), *([str(own)] if own.is_dir() else [])]
        # The older clients add /v1 themselves.
        has_v1 = self.version.startswith("2.")
        return {
            "CLIENT": self.slug,
            "VERSION": self.version,
            "PYTHONPATH": ":".join(paths),
            "NODE_PATH": str(INSTALLED / "node" / "node_modules"),
            "REPLICATE_API_BASE_URL": api,
            "REPLICATE_BASE_URL": f"{api}/v1" if has_v1 else api,
            "REPLICATE_POLL_INTERVAL": "0.1",
            "OPENAI_BASE_URL": f"{api}/openai/v1",
        }


CLIENTS = [
    *(
        Client("Python `replicate`", version, "replicate_0")
        for version in ("0.8.4", "0.15.4", "0.25.2")
    ),
    Client("Python `replicate`", "1.0.7", "replicate_1"),
    Client("Python `replicate`", "2.0.0b4", "replicate_2"),
    Client("npm `replicate`", "1.4.0", "node", needs=("node",)),
    Client("curl and jq", "any", "curl", needs=("bash", "curl", "jq")),
    Client("Python `openai`", "3.57.0", "openai_3"),
]


@dataclass(frozen=True)
class Check:
    """One thing that a program shows."""

    name: str
    call: str
    shown: str
    but: str = ""
    """Versions that have no such call."""


def read_checks(program: Path) -> Iterator[Check]:
    """Read from the text of a program what it shows."""
    text = program.read_text()
    if program.suffix == ".py":
        yield from _checks_in_python(ast.parse(text))
    elif program.suffix == ".mjs":
        for name, call, shown in re.findall(r'^check\("(\w+)", "([^"]+)", "([^"]+)",', text, re.M):
            yield Check(name, call, shown)
    else:
        for call, shown, name in re.findall(r"^# (.+?): (.+)\ncheck_(\w+)\(\)", text, re.M):
            yield Check(name, call, shown)


def _checks_in_python(tree: ast.Module) -> Iterator[Check]:
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.decorator_list:
            continue
        decorator = node.decorator_list[0]
        assert isinstance(decorator, ast.Call)
        but = {keyword.arg: ast.literal_eval(keyword.value) for keyword in decorator.keywords}
        yield Check(
            node.name, ast.literal_eval(decorator.args[0]), ast.get_docstring(node) or "", **but
        )


def client_checks(client: Client) -> list[tuple[Path, Check]]:
    """Return all checks that a client runs, with the program of each."""
    return [
        (program, check)
        for program in client.programs()
        for check in read_checks(program)
        if client.version not in check.but.split()
    ]
