"""Addresses of machines and servers: which mean this machine, how they are written and asked."""

import os
import re
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from urllib.parse import unquote, urlsplit

SQLITE = "sqlite:///"
LOOPBACKS = ("localhost", "127.0.0.1", "::1", "[::1]", "127.0.0.0/8")  # as libraries spell them
# Where the libraries look for certificate authorities: obstore and Python; MLflow; its S3 client.
AUTHORITIES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
# As SQLAlchemy reads it: a password may hold / ? # and @. A colon of IPv6 comes after a bracket.
_USER = re.compile(r"([^:/\[]*):(.*)@", re.DOTALL)
_PORT = re.compile(r"\d*[/?#]")
_SECRET = re.compile(
    r"([?&][^=&?]*(?:passw|passphrase|pwd|secret|token|odbc_connect)[^=&]*=)[^&]*", re.I
)


def is_loopback(host: str) -> bool:
    """Return whether a host name means this machine only, in any spelling.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("lab.example.org"), is_loopback("0.0.0.0")
        (True, False, False)
        >>> is_loopback("LOCALHOST."), is_loopback("[::1]"), is_loopback("::ffff:127.0.0.1")
        (True, True, True)
    """
    plain = host.strip("[]").lower().removesuffix(".")
    if plain == "localhost":
        return True
    try:
        address = ip_address(plain)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def place_of(text: str) -> tuple[str, int | None] | None:
    """Return host (lower case) and port of a URL, or of `host:port` alone; None if it has none.

    Example:
        >>> place_of("http://[::1]:8100/"), place_of("LAB.:80"), place_of("http://[::1")
        (('::1', 8100), ('lab', 80), None)
    """
    is_url = "://" in text
    if not is_url and set(text) & set("/@?#\\ "):
        return None
    try:
        parts = urlsplit(text if is_url else f"//{text}")
        port = parts.port
    except ValueError:  # an open bracket, or a port that is no number
        return None
    host = (parts.hostname or "").removesuffix(".")
    return (host, port) if host else None


def url_of(host: str, port: int) -> str:
    """Return the http URL of a host and port.

    Example:
        >>> url_of("::1", 8100), url_of("127.0.0.1", 8100)
        ('http://[::1]:8100', 'http://127.0.0.1:8100')
    """
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"


def reachable(host: str) -> str:
    """Return the host at which a server that listens on `host` answers on this machine.

    Example:
        >>> reachable("0.0.0.0"), reachable("::"), reachable("10.0.0.7")
        ('127.0.0.1', '::1', '10.0.0.7')
    """
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound


def without_password(url: str) -> str:
    """Return a URL as it may be shown and logged.

    Example:
        >>> without_password("postgresql+psycopg://mlflow:secret@db/zoo")
        'postgresql+psycopg://mlflow:***@db/zoo'
        >>> without_password("postgresql+psycopg://db/zoo?password=secret&sslmode=require")
        'postgresql+psycopg://db/zoo?password=***&sslmode=require'
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    secret, known = _SECRET.search(rest), _USER.match(rest)
    place = rest[: secret.start()] if secret else rest
    query = _SECRET.sub(r"\1***", rest[len(place) :])
    is_web = scheme.lower() in ("http", "https")
    if known and not (is_web and _PORT.match(known[2])):
        host, slash, path = place.partition("/") if is_web else (place, "", "")
        if "@" not in host:  # a slash in the password
            host, slash, path = place, "", ""
        place = f"{known[1]}:***@{host.rpartition('@')[2] if '@' in host else ''}{slash}{path}"
    return f"{scheme}://{place}{query}"


def sqlite_url(path: Path) -> str:
    """Return SQLAlchemy's URL of a file, whatever the names of its folders hold.

    Example:
        >>> sqlite_url(Path("/lab/100 %/zoo.db"))
        'sqlite:////lab/100 %25/zoo.db'
    """
    return SQLITE + str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_path(url: str) -> Path:
    """Return the file of such a URL."""
    return Path(unquote(url.removeprefix(SQLITE).partition("?")[0]))


# -- what every library reads from the environment --------------------------------------------
def spare_loopback() -> None:
    """Let no library of this process ask a server of this machine through a proxy."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return
    given = ",".join(os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    known = [name.strip() for name in given.split(",") if name.strip()]
    wanted = ",".join(dict.fromkeys([*known, *LOOPBACKS]))
    if "*" not in known:
        os.environ |= {"no_proxy": wanted, "NO_PROXY": wanted}


def trust_authorities(bundle: str) -> None:
    """Let every library of this process trust the authorities of a PEM file, and no others."""
    os.environ |= dict.fromkeys(AUTHORITIES if bundle else (), bundle)


def unreached_hint(url: str, said: str, otherwise: str) -> str:
    """Return what to do about a server that does not answer.

    Args:
        url: its URL.
        said: all that the library said.
        otherwise: the hint if neither a certificate nor a proxy is the reason.
    """
    if "certificate" in said.lower() or "UnknownIssuer" in said:
        return "set MANYBEAM_CA_BUNDLE to a PEM file with the certificate authorities to trust"
    return _proxy_hint(url) or otherwise


def _proxy_hint(url: str) -> str:
    from urllib.request import getproxies_environment, proxy_bypass  # slow to import

    scheme, place = url.partition("://")[0].lower(), place_of(url)
    proxies = getproxies_environment()
    if scheme not in ("http", "https") or place is None:
        return ""
    proxy = proxies.get(scheme) or proxies.get("all") or ""
    if not proxy or is_loopback(place[0]) or proxy_bypass(place[0]):
        return ""
    name = scheme if proxies.get(scheme) else "all"
    return (
        f"it is asked through the proxy {without_password(proxy)} of {name}_proxy; to ask it "
        f"directly: export no_proxy={place[0]}"
    )
