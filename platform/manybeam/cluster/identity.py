"""The id of this platform: every answer of its service names it, and nobody takes another's.

Two platforms of one machine are told apart by it. It belongs to a home at its place: a copy of a
home is another platform.
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from manybeam.addresses import is_loopback, place_of
from manybeam.asgi import PLATFORM_HEADER
from manybeam.data.disk import alone, write_files
from manybeam.errors import Conflict
from manybeam.settings import settings


def platform_id() -> str:
    """Return the id of this platform; the first call in a home makes it.

    Raises:
        WriteFailed: the home cannot be written.
    """
    home = settings().home
    with alone(home / "platform.lock"):
        if known := known_platform_id():
            return known
        made = {"id": secrets.token_hex(8), "home": str(home.resolve())}
        write_files({_file(): json.dumps(made).encode()})
        return made["id"]


def known_platform_id() -> str:
    """Return the id of this platform; "" if it has none yet, because nothing was started here."""
    try:
        found = json.loads(_file().read_text())
        is_here = found["home"] == str(settings().home.resolve())
        return str(found["id"]) if is_here else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def check_platform(url: str, headers: Mapping[str, str]) -> None:
    """Refuse an answer of another platform.

    On this machine, a service is this platform's or a neighbour's. On another one it may be a
    facility's, which this home does not know.

    Args:
        url: what was asked.
        headers: of the answer; names in any case.

    Raises:
        Conflict: another platform answered.
    """
    host, _ = place_of(url) or ("", None)
    named, own = headers.get(PLATFORM_HEADER), known_platform_id()
    if named and named != own and is_loopback(host):
        raise Conflict(
            f"another platform answers at {url}: {named}",
            f"this one is {own}" if own else "nothing was started from this home yet",
            "set MANYBEAM_HOME to that platform's home, or MANYBEAM_SERVICE_URL to a free port",
        )


def _file() -> Path:
    return settings().home / "platform.json"
