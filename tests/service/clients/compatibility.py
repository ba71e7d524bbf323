"""The page of all checks: python -m tests.service.clients.compatibility > docs/compatibility.md"""

from itertools import groupby

from tests.service.clients.clients import CLIENTS, Client, client_checks

HEAD = """\
# Compatibility

What each client is seen to do against the service, with nothing changed but base URL and token. The
tests in [`tests/service/clients`](../tests/service/clients) run every line with the client itself:
{count} checks, one for each version and line. `scripts/install-clients` installs the clients, and
`python -m tests.service.clients.compatibility` prints this page.
"""


def render() -> str:
    """Return the text of docs/compatibility.md."""
    count = sum(len(client_checks(client)) for client in CLIENTS)
    sections = [
        _section(list(clients)) for _, clients in groupby(CLIENTS, key=lambda client: client.folder)
    ]
    return "\n".join([HEAD.format(count=count), *sections])


def _section(clients: list[Client]) -> str:
    """Return the checks of one client in all its versions."""
    checks = {client: [check for _, check in client_checks(client)] for client in clients}
    versions = [client.version for client in clients]
    several = len(clients) > 1
    title = clients[0].name if versions == ["any"] else f"{clients[0].name} {', '.join(versions)}"
    lines = [f"## {title}", ""]
    lines.append("| " + " | ".join(["call", "what is checked", *(versions * several)]) + " |")
    lines.append("|---" * (2 + len(versions) * several) + "|")
    rows = dict.fromkeys(check for client in clients for check in checks[client])
    for check in sorted(rows, key=lambda check: check.call.lower()):
        marks = ["yes" if check in checks[client] else "" for client in clients]
        lines.append("| " + " | ".join([f"`{check.call}`", check.shown, *(marks * several)]) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(render(), end="")
