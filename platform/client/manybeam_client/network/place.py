"""Where the service is and what shows who asks: URL, token, authority, proxy."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

DEFAULT_URL = "http://127.0.0.1:8100"


@dataclass(frozen=True)
class Place:
    """Where the service is.

    Attributes:
        url: without a slash at the end.
        token: shown with each request; empty for none.
        ca: file of a private certificate authority; empty for those of the system.
    """

    url: str
    token: str = field(default="", repr=False)
    ca: str = ""

    @property
    def host(self) -> str:
        """Name or address of the service."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Port of the service."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.url.startswith("https:")

    @property
    def proxy(self) -> str:
        """URL of the proxy that the environment names for this service; empty for none.

        Raises:
            ValueError: it cannot be used.
        """
        from urllib.request import getproxies, proxy_bypass  # slow to load

        if proxy_bypass(self.host) or proxy_bypass(f"{self.host}:{self.port}"):
            return ""
        known = getproxies()
        found = known.get("https" if self.is_tls else "http") or known.get("all") or ""
        found = found if "://" in found or not found else "http://" + found
        if found:
            _check_proxy(found)
        return found

    def headers(self) -> dict[str, str]:
        """Return the headers that show who asks."""
        return {"Authorization": "Bearer " + self.token} if self.token else {}

    def context(self) -> ssl.SSLContext | None:
        """Return what checks certificates; None without TLS."""
        import ssl

        return ssl.create_default_context(cafile=self.ca or None) if self.is_tls else None

    def websocket_url(self, path: str) -> str:
        """Return the URL of a WebSocket of the service."""
        return "ws" + self.url[len("http") :] + path


def find_place(url: str | None = None, token: str | None = None, ca: Any = None) -> Place:
    """Return where the service is; what is left out is in the environment.

    Args:
        url: of the service; else `MANYBEAM_URL`, else this machine.
        token: else `MANYBEAM_TOKEN`.
        ca: path of a file of certificates; else `MANYBEAM_CA`.

    Raises:
        ValueError: the URL, the token, the file or the proxy of the environment cannot be used.
    """
    environment = os.environ
    url = (url or environment.get("MANYBEAM_URL") or DEFAULT_URL).strip().rstrip("/")
    token = (environment.get("MANYBEAM_TOKEN", "") if token is None else token).strip()
    ca = str(ca or environment.get("MANYBEAM_CA") or "")
    _check_url(url)
    scheme, _, rest = url.partition("://")
    url = scheme.lower() + "://" + rest
    if not all("!" <= letter <= "~" for letter in token):
        raise ValueError("token: it has characters that no token has; copy it again")
    if ca:
        _check_authority(ca)
    place = Place(url, token, ca)
    if any(name.lower().endswith("_proxy") for name in environment):
        _ = place.proxy  # one that cannot be used is no outage, so it is told now
    return place


def _names_a_server(url: str) -> bool:
    """Return whether a URL is one of HTTP with a host and a good port."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _check_proxy(url: str) -> None:
    if not _names_a_server(url):
        shown = url.rpartition("@")[2][:120]  # without user and password
        raise ValueError(
            f"proxy: {shown!r} cannot be used; give one such as http://proxy.lab:8080 in "
            "HTTPS_PROXY or HTTP_PROXY (SOCKS is not spoken), or name the service in NO_PROXY"
        )


def _check_url(url: str) -> None:
    if not _names_a_server(url) or any(mark in url for mark in "?#@"):
        shown = url[:120] if "@" not in url else "(one with a password)"
        raise ValueError(
            f"url: {shown!r} is not the URL of a service; give one such as "
            "https://manybeam.lab or http://127.0.0.1:8100"
        )


def _check_authority(ca: str) -> None:
    import ssl

    try:
        ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        reason = "there is no such file" if not Path(ca).is_file() else str(error)
        raise ValueError(
            f"ca: {ca!r} cannot be read: {reason}; give the file of the certificate authority "
            "(PEM, begins with -----BEGIN CERTIFICATE-----)"
        ) from error
