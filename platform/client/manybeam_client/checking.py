"""What is wrong between here and the service, step by step.

Each step rests on the ones before it. The first that fails ends the check, because the later ones
would only repeat it.
"""

from __future__ import annotations

import json
import platform
import socket
import ssl
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable
from urllib.parse import quote, urlsplit

import numpy as np

from manybeam_client.errors import Problem, problem_of
from manybeam_client.frame import FrameRequest, raw_body
from manybeam_client.link import Link, healthy
from manybeam_client.network.connection import NotReached, tls_problem
from manybeam_client.network.place import Place, find_place
from manybeam_client.stream.stream import has_websocket
from manybeam_client.version import __version__

if TYPE_CHECKING:
    import os

    from manybeam_client.network.connection import Reply

PATIENCE_S = 10.0
SIDE_PX = 64  # of the frame that is sent
UNREACHABLE, NOT_ALLOWED = 3, 5


@dataclass(frozen=True)
class Step:
    """One step of a check.

    Attributes:
        name: what was looked at.
        state: `ok`, `note` (it works, but one should know), or `fail`.
        what: what was found.
        hint: what to do; may be empty.
        exit_code: of a program that failed here.
    """

    name: str
    state: str
    what: str
    hint: str = ""
    exit_code: int = 0

    def __str__(self) -> str:
        """Return the step as a line, and the hint as a second one."""
        line = f"{self.state:<5}{self.name:<10}{self.what}"
        return line + ("\n" + " " * 15 + "-> " + self.hint if self.hint else "")


@dataclass(frozen=True)
class Report:
    """The steps of a check, in order."""

    steps: list[Step] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Return whether frames can be sent."""
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """0, 3 (the service cannot be reached) or 5 (it does not let this client in)."""
        return max((step.exit_code for step in self.steps), default=0)

    def __str__(self) -> str:
        """Return all lines."""
        return "\n".join(str(step) for step in self.steps)


class _Failed(Exception):
    """A step failed, so the later ones make no sense."""

    def __init__(self, what: str, hint: str = "", exit_code: int = UNREACHABLE) -> None:
        super().__init__(what)
        self.what, self.hint, self.exit_code = what, hint, exit_code


class _Noted(Exception):
    """A step found something to know; the check goes on."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def check(
    url: str | None = None,
    token: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    instrument: str = "",
    ensemble: str = "auto",
    when_done: Callable[[Step], None] | None = None,
) -> Report:
    """Return what is right and wrong between here and the service; it never raises for that.

    Args:
        url: of the service; `MANYBEAM_URL` if left out.
        token: `MANYBEAM_TOKEN` if left out.
        ca: file of a private certificate authority; `MANYBEAM_CA` if left out.
        instrument: id of the instrument, to look at its session and its stream too.
        ensemble: REF that answers the frame.
        when_done: is called after each step.
    """
    report = Report()

    def add(step: Step) -> None:
        report.steps.append(step)
        if when_done is not None:
            when_done(step)

    try:
        place = find_place(url, token, ca)
        _ = place.proxy  # one of Windows' settings was not looked at yet
    except ValueError as error:
        add(Step("settings", "fail", str(error), exit_code=UNREACHABLE))
        return report
    looked = _Look(place, instrument, ensemble)
    try:
        for name, look in looked.steps():
            step = _step_of(name, look)
            add(step)
            if step.state == "fail":
                break
    finally:
        looked.link.close()
    return report


def _step_of(name: str, look: Callable[[], str]) -> Step:
    """Look, and return what was found as a step."""
    try:
        return Step(name, "ok", look())
    except _Noted as noted:
        return Step(name, "note", noted.what, noted.hint)
    except _Failed as failed:
        return Step(name, "fail", failed.what, failed.hint, failed.exit_code)
    except Exception as error:  # noqa: BLE001 - a check tells of all that goes wrong
        what = f"{type(error).__name__}: {str(error)[:200]}"
        hint = "nobody thought of this; check the settings, and report it with these lines"
        return Step(name, "fail", what, hint, UNREACHABLE)


class _Look:
    """The steps, and what they found for the next ones."""

    def __init__(self, place: Place, instrument: str, ensemble: str) -> None:
        self._place, self._instrument, self._ensemble = place, instrument, ensemble
        self.link = Link(place)
        self._health: dict[str, object] = {}
        self._ref = ensemble

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        """Return names and functions of the steps; they return what was found."""
        direct = [("name", self._name), ("tcp", self._tcp)]
        if self._place.is_tls:
            direct.append(("tls", self._tls))
        way = [("proxy", self._proxy)] if self._place.proxy else direct
        asked = [("http", self._http), ("version", self._version), ("token", self._token)]
        of_instrument = [("session", self._session)] if self._instrument else []
        last = [("frame", self._frame), ("stream", self._stream)]
        return [("client", self._client), *way, *asked, *of_instrument, *last]

    def _client(self) -> str:
        import urllib3

        found = {"numpy": np.__version__, "urllib3": getattr(urllib3, "__version__", "?")}
        packages = ", ".join(" ".join(one) for one in found.items())
        own = f"manybeam-client {__version__}, Python {platform.python_version()}"
        return f"{own}, {packages}; {self._place.url}"

    def _name(self) -> str:
        host = self._place.host
        try:
            found = socket.getaddrinfo(host, self._place.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # a name with a part of more than 63 letters
            raise _Failed(
                f"{host[:120]} has no address: {error}",
                "check the spelling of the URL, the DNS server and the VPN; or use the address",
            ) from error
        addresses = sorted({str(one[4][0]) for one in found})
        return "{} is {}".format(host, ", ".join(addresses))

    def _proxy(self) -> str:
        proxy = urlsplit(self._place.proxy)
        where = f"{proxy.hostname}:{proxy.port or 8080}"
        try:
            socket.create_connection((proxy.hostname or "", proxy.port or 8080), 5.0).close()
        except OSError as error:
            raise _Failed(
                f"the proxy {where} cannot be reached: {error}",
                f"correct HTTPS_PROXY or HTTP_PROXY; NO_PROXY={self._place.host} avoids it",
            ) from error
        return f"requests go through the proxy {where} (NO_PROXY lists exceptions)"

    def _tcp(self) -> str:
        begun_s = time.monotonic()
        try:
            socket.create_connection((self._place.host, self._place.port), 5.0).close()
        except OSError as error:
            raise _Failed(
                f"port {self._place.port} of {self._place.host} does not answer: {error}",
                "the service does not run there, or a firewall is between; ask for the port",
            ) from error
        took_ms = (time.monotonic() - begun_s) * 1000
        return f"port {self._place.port} answers, in {took_ms:.1f} ms"

    def _tls(self) -> str:
        context, host = self._place.context(), self._place.host
        assert context is not None  # noqa: S101 - the step exists with TLS only
        try:
            plain = socket.create_connection((host, self._place.port), 5.0)
            with plain, context.wrap_socket(plain, server_hostname=host) as wrapped:
                version, known = wrapped.version(), wrapped.getpeercert() or {}
        except (OSError, ssl.SSLError, ssl.CertificateError) as error:
            problem = tls_problem(str(error))
            raise _Failed(f"{problem.what}: {problem.why}", problem.hint) from error
        return "{}, certificate until {}".format(version, known.get("notAfter", "?"))

    def _http(self) -> str:
        reply = self._asked("GET", "/healthz")
        health = healthy(reply.data)
        if reply.status != 200 or health is None:
            problem = problem_of(reply.status, reply.headers, reply.data)
            what = f"/healthz gave {reply.status}: {problem.what}"
            if problem.why:
                what += "; " + problem.why
            raise _Failed(what, problem.hint or "check the URL and its port")
        self._health = health
        return "the service answers"

    def _version(self) -> str:
        theirs = str(self._health.get("version", ""))
        if not theirs:
            raise _Noted("the service does not say its version", "it may be an old one")
        said = f"service {theirs}, client {__version__}"
        own, its = _release(__version__), _release(theirs)
        if own == its:
            return said
        order = "older" if own < its else "newer"
        raise _Noted(f"{said}: the client is {order}", "what both know is used")

    def _token(self) -> str:
        shown = "a token is shown" if self._place.token else "no token is shown"
        reply = self._asked("GET", "/v1/ensembles")
        if reply.status in (401, 403):
            raise _not_allowed(problem_of(reply.status, reply.headers, reply.data))
        if reply.status != 200:
            raise _Noted(str(problem_of(reply.status, reply.headers, reply.data)))
        self._ref = self._ensemble if self._ensemble != "auto" else _first_ref(reply.data)
        return f"{shown}, and the service lets this client in"

    def _session(self) -> str:
        path = "/v1/instruments/{}/session".format(quote(self._instrument, safe=""))
        reply = self._asked("GET", path)
        found = _object(reply.data) if reply.status == 200 else None
        if found is not None:
            return "{}: {} {}".format(self._instrument, found.get("policy"), found.get("ref"))
        problem = problem_of(reply.status, reply.headers, reply.data)
        if reply.status in (401, 403):
            raise _not_allowed(problem)
        if reply.status == 404:
            raise _Noted(
                f"{self._instrument} has no session",
                f"Session(instrument={self._instrument!r}) starts one",
            )
        if reply.status == 200:
            raise _Failed(str(problem), problem.hint)
        raise _Noted(str(problem))

    def _frame(self) -> str:
        """Send noise to an ensemble by its name, so that no session of an instrument sees it."""
        frame_yx = np.random.RandomState(0).rand(SIDE_PX, SIDE_PX).astype(np.float32)
        body, dtype, shape = raw_body(frame_yx)
        name = "check-" + uuid.uuid4().hex[:12]
        query = {"pixel_size_pm": "16", "trust_pixel_size": "true"}
        request = FrameRequest(self._ref, name, body, dtype=dtype, shape=shape, query=query)
        answer = self.link.answer(request, time.monotonic(), PATIENCE_S * 1000)
        problem = answer.error
        if problem is None:
            who = f"{answer.ensemble} version {answer.version} answered"
            return f"{SIDE_PX} px there and back in {answer.took_ms:.1f} ms; {who}"
        if problem.kind == "not-allowed":
            raise _not_allowed(problem)
        raise _Failed(str(problem), problem.hint)

    def _stream(self) -> str:
        if not has_websocket():
            raise _Noted(
                "streams use HTTP: the extra is not installed",
                "pip install 'manybeam-client[stream]' for one WebSocket",
            )
        return self._websocket()

    def _websocket(self) -> str:
        from manybeam_client.stream.wire import NoWebSocket, WireEnded, probe

        try:
            return probe(self._place)
        except (NoWebSocket, WireEnded) as error:
            raise _Noted(
                f"no WebSocket, so streams use HTTP: {error}",
                "an older service has none, or a proxy refuses upgrades; nothing is lost",
            ) from error

    def _asked(self, method: str, path: str) -> Reply:
        try:
            return self.link.connection.ask(method, path, time.monotonic() + PATIENCE_S)
        except NotReached as error:
            problem = error.problem
            what = "; ".join(part for part in (problem.what, problem.why) if part)
            raise _Failed(what, problem.hint) from error


def _not_allowed(problem: Problem) -> _Failed:
    hint = problem.hint or "set MANYBEAM_TOKEN; manybeam instrument token makes one"
    return _Failed(f"{problem.status}: {problem.what}", hint, NOT_ALLOWED)


def _release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version; what follows changes nothing on the way."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _object(data: bytes) -> dict[str, object] | None:
    """Return an object of JSON; None if it is anything else."""
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _first_ref(data: bytes) -> str:
    """Return the REF of an ensemble that serves, of the list of them; `auto` if it is empty."""
    try:
        return str(json.loads(data.decode("utf-8"))["ensembles"][0]["ref"])
    except (ValueError, LookupError, TypeError):  # a newer service may write another list
        return "auto"
