"""What guides told people to type: programs of ours, and old ones that lie beside the project."""

from dataclasses import dataclass
from pathlib import Path

from tests.conftest import SHARED_DATA
from tests.service.clients.clients import CLIENTS, PROGRAMS, Client


@dataclass(frozen=True)
class Guide:
    """A program that a client runs from its first line to its last."""

    client: Client
    program: Path
    arguments: tuple[str, ...] = ()
    """Names of variables, whose values are its arguments."""

    @property
    def id(self) -> str:
        """Name of the test."""
        return f"{self.program.parent.parent.name}-{self.program.stem}-{self.client.slug}"


def _guides() -> list[Guide]:
    ours, old = PROGRAMS / "guides", SHARED_DATA / "guides"
    clients = {client.version: client for client in CLIENTS}
    found = [Guide(clients["any"], ours / "fine_tune.sh")]
    found.append(Guide(clients["any"], old / "training-guide.sh", ("OWNER",)))
    for version in ("0.15.4", "0.25.2", "1.0.7"):
        found.append(Guide(clients[version], ours / "fine_tune.py"))
        found.append(Guide(clients[version], old / "training-guide.py", ("DATA_URL", "OWNER")))
    for version in ("0.25.2", "1.0.7"):
        found.append(Guide(clients[version], ours / "chat.py"))
        found.append(Guide(clients[version], old / "chat-page.py"))
    return found


GUIDES = _guides()
