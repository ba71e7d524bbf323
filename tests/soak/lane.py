"""One server's share of a soak: an action, what came of it, and what it left, over and over."""

import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.soak.server import SoakRequest, SoakServer, error_of
from tests.soak.web import SoakWeb

LEFT_SECONDS = 5.0
_UNCLEAR = re.compile(
    r"Traceback|\b[A-Z]\w+(Error|Exception)\b|site-packages|\.py\b|0x[0-9a-f]{6}|<class|\bNone\b"
)


class NotAsPromised(Exception):
    """What came of an action is neither what was promised nor a refusal that was due."""


@dataclass
class Row:
    """What came of one kind of action."""

    tried: int = 0
    as_promised: int = 0
    refused: int = 0
    otherwise: int = 0
    processes: int = 0
    folders: int = 0
    wrong: int = 0
    not_ready: int = 0
    unclear: int = 0

    def is_good(self) -> bool:
        """Whether each attempt came out right and left nothing."""
        bad = self.otherwise + self.processes + self.folders
        return bad + self.wrong + self.not_ready + self.unclear == 0


@dataclass
class Lane:
    """A server with everything that its actions need."""

    server: SoakServer
    web: SoakWeb
    rng: random.Random
    pause: float = 0.0
    """Most seconds between two actions."""
    rows: dict[str, Row] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)
    """Of the server's environment, when it is started next."""
    action: str = ""
    struck: float = 0.0
    """When the current action did its harm."""
    is_down: bool = False
    next: tuple[str, Callable[[], None]] | None = None
    """An action that belongs after the current one."""
    allowed: int = 0
    """How many temporary folders may be there at rest."""

    @property
    def row(self) -> Row:
        """The row of the current action."""
        return self.rows.setdefault(self.action, Row())

    def run(
        self, actions: Mapping[str, tuple[int, Callable[[], None]]], end: threading.Event
    ) -> None:
        """Try actions at random until the end; the numbers say how often each is drawn."""
        names, weights = list(actions), [weight for weight, _ in actions.values()]
        first_round = self.rng.sample(names, len(names))
        while not end.is_set():
            # Each once, so that a short soak leaves none out.
            name = first_round.pop() if first_round else self.rng.choices(names, weights)[0]
            time.sleep(self.rng.uniform(0, self.pause))
            self.attempt(name, actions[name][1])
            while self.next is not None:
                (name, act), self.next = self.next, None
                self.attempt(name, act)

    def attempt(self, name: str, act: Callable[[], None]) -> None:
        """Try one action and count what came of it and what it left."""
        self.action, self.struck, self.is_down = name, time.monotonic(), False
        self.row.tried += 1
        try:
            act()
        except NotAsPromised as error:
            self.row.otherwise += 1
            self.note(str(error))
        # A soak that ends at the first surprise would not find the second.
        except Exception as error:
            self.row.otherwise += 1
            self.note(f"{type(error).__name__}: {error}")
        self.check_left(max(self.struck, time.monotonic() - 1) + LEFT_SECONDS)
        self._check_ready()
        if len(left := self.server.leftovers()) > self.allowed:
            self.row.folders += len(left) - self.allowed
            self.note(f"left folders: {left}")
            self.allowed = len(left)
        self.server.note_memory()

    def check_left(self, deadline: float) -> None:
        """Count the processes that are left over at a time, and end them."""
        if left := self.server.wait_alone(deadline):
            self.row.processes += left
            commands = sorted({p.command[:120] for p in self.server.busy()})
            self.note(f"left {left} processes: {commands}")
            self.server.kill_all()
            self.is_down = True

    def _check_ready(self) -> None:
        if self.is_down:
            self.server.start(**self.extra)
        elif not self.server.wait_ready():
            self.row.not_ready += 1
            self.note(f"not ready: {self.server.log_tail()[-500:]}")
            self.server.kill_all()
            self.server.start(**self.extra)

    def kill_worker(self) -> None:
        """Kill the worker, and check that the server says so and that nothing else is left."""
        self.struck = time.monotonic()
        self.server.kill_worker()
        self.check_left(self.struck + 2)
        self.is_down = True
        says_ready = self.server.wait_ready(2)
        self.server.kill_all()
        if says_ready:
            raise NotAsPromised("a server without its worker says that it is ready")

    def take_down(self, seconds: float, *, left_seconds: float) -> None:
        """Check that the server, which was told or made to end, ends with all its processes."""
        has_ended = self.server.wait_end(seconds)
        self.is_down = True
        self.check_left(self.struck + left_seconds)
        self.server.kill_all()
        if not has_ended:
            raise NotAsPromised(f"the server has not ended after {seconds:.0f} s")

    def ask(self, **inputs: Any) -> SoakRequest:
        """Send a request."""
        return SoakRequest(self.server, self.web, inputs)

    def end_of(self, request: SoakRequest, seconds: float) -> dict[str, Any]:
        """Return how a request ended; raises NotAsPromised if it has not in time."""
        end = request.wait(seconds)
        if end is None:
            raise NotAsPromised(f"no answer after {seconds:.0f} s")
        return end

    def expect_refusal(self, end: Mapping[str, Any]) -> None:
        """Count a request that was to be refused."""
        if end["status"] != "failed":
            raise NotAsPromised(f"expected a refusal, found {end['status']}")
        self.check_error(end)
        self.row.refused += 1

    def check_error(self, end: Mapping[str, Any], pattern: str = "") -> None:
        """Count an error that is no plain sentence; raises NotAsPromised for another one."""
        error = error_of(end)
        if not error or _UNCLEAR.search(error) or error.count("\n") > 12:
            self.row.unclear += 1
            self.note(f"unclear error: {error[:500]}")
        if not re.search(pattern, error):
            raise NotAsPromised(f"expected the error to say {pattern!r}, found {error[:500]!r}")

    def note(self, what: str) -> None:
        """Keep and print what went wrong."""
        self.problems.append(f"{self.action}: {what}")
        print(f"{time.strftime('%H:%M:%S')} {self.problems[-1]}", flush=True)
