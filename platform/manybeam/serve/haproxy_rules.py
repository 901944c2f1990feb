"""HAProxy with the rules that Ray's configuration of it lacks: a program that Ray starts for it.

Ray writes the configuration and starts this program in place of HAProxy. It adds the rules and
becomes HAProxy. It starts at every change of the replicas, so it needs the standard library only:

    python -I -S haproxy_rules.py RULES BINARY [arguments of HAProxy]
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

PLATFORM_HEADER = "x-manybeam-platform"  # as in manybeam.asgi
KEY_HEADER = "x-manybeam-proxy"  # of a request to a replica, which answers its proxy only
# With the key, a replica also learns when a request arrived [ms since 1970, by the clock of the
# proxy], and a name that is the same when the request is sent again.
ARRIVED_HEADER, REQUEST_HEADER = "x-manybeam-arrived", "x-manybeam-request"
# Who sends the head of a request slower than this is cut; a body has its own limits.
HEAD_S = 10
# A scrape takes milliseconds. So few connections at once, and so short, cannot stop the service.
WATCHERS, WATCHER_S = 16, 5

# A request with so many bytes of body is sent again if its replica dies, because HAProxy keeps all
# of it until the answer: 512 x 512 values of 4 bytes and the head of their file. Larger buffers
# would slow every request down.
REPEATED = 2**20 + 2**16
BUFFER = REPEATED + 2**16  # with the head of the request
BUFFERS = 512  # all senders together; the rest waits
BODY_S = 22  # for such a body: the least rate and the grace of `edge.admission`
# So many requests are kept, of one address and of all. Others are passed on while they arrive, as
# large ones are: so slow senders get no more buffers, and behind a reverse proxy, which has one
# address, all are still answered.
KEPT_OF_ADDRESS, KEPT = 64, 256
SENDERS = "manybeam_senders"  # the section that counts all of them
# A host that was switched off does not say so. Linux asks it after a second of silence, so often,
# and then its requests are sent again; also if it takes nothing of one for as long as that.
ASKED = 2
LOST_S = 1 + ASKED
# A stream (WebSocket) without a byte either way is dead: the service says every 5 s that it is
# there, and its server asks the client every 20 s.
SILENT_S = 60
# HAProxy would otherwise map, clear and unmap its buffers at each request: 0.7 of 1.8 ms.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "268435456"}

# Ray's names of the sections that listen.
FRONT, WATCHING = "http_frontend", ("prometheus", "stats")

_FOREIGN = "the answer is not one of this platform's service"
_ABSENT = "no process of the service answers now"
_SLOW = "the head or the body of the request did not arrive in time"
_ENDED = "the last process of the service that began this request ended before it answered"


class UnknownConfiguration(ValueError):
    """Ray's configuration is not the one to which the rules belong; so HAProxy is not started."""


@dataclass(frozen=True)
class Rules:
    """What Ray's configuration lacks.

    Args:
        platform: the id of the platform; answers of others are refused.
        host: where the service listens, also if Ray was told another address.
        port: of the service.
        key: what shows a replica that its proxy asks it; a secret.
        no_token: the problem for a request without a token, as JSON, with `NAME` where its id is
            said; "" if no token is needed.
    """

    platform: str
    host: str
    port: int
    key: str
    no_token: str = ""


def with_rules(text: str, rules: Rules) -> str:
    """Return Ray's configuration with the rules.

    Raises:
        UnknownConfiguration: a section that listens is not known, or a known one is not there.
    """
    lines: list[str] = []
    section, listening = "", []
    spares = _spares(text)
    for line in text.splitlines():
        words = line.split() or [""]
        if words[0] and not line[0].isspace():
            section = words[-1]
        if words[0] == "bind":
            listening.append(section)
            lines += _for_callers(rules) if section == FRONT else _for_watchers(words[1])
        elif words[0] == "server":  # `tcp-ut` is not inherited from `default-server`
            unasked = " no-check" if words[1] in spares else ""
            lines.append(f"{line} tcp-ut {LOST_S}s{unasked}")
        elif words[0] != "errorfile":
            lines.append(line)
        if words == ["global"]:
            lines.append(f"    tune.buffers.limit {BUFFERS}")
        elif words == ["defaults"]:
            lines += _for_all()
        elif words[0] == "backend":
            lines += _for_answers(rules, spares)
    if sorted(listening) != sorted((FRONT, *WATCHING)):
        raise UnknownConfiguration(
            f"in Ray's configuration of HAProxy, these listen: {', '.join(listening)}; "
            f"known are {', '.join((FRONT, *WATCHING))}"
        )
    lines += [f"backend {SENDERS}", "    stick-table type integer size 1 store conn_cur"]
    return "\n".join(lines) + "\n"


def _spares(text: str) -> list[str]:
    """Return the servers that are asked if no replica is there: Ray's own proxy.

    It waits until there is one. A check that is late, as on busy cores, must not take it away.
    """
    lines = (line.split() for line in text.splitlines())
    return [words[1] for words in lines if words[:1] == ["server"] and words[-1] == "backup"]


def _for_answers(rules: Rules, spares: list[str]) -> list[str]:
    """Return the rules for what replicas answer, and Ray's proxy for them."""
    is_ours = f"{{ res.hdr({PLATFORM_HEADER}) -m str {rules.platform} }}"
    ended = [
        f"    {_answer('http-response return', 500, _ENDED, 'work-failed')} "
        f"if !{is_ours} {{ srv_name -m str {one} }} {{ status 500 }}"
        for one in spares
    ]
    return [*ended, f"    {_answer('http-response return', 503, _FOREIGN)} unless {is_ours}"]


def _for_watchers(address: str) -> list[str]:
    return [
        f"    bind 127.0.0.1:{address.rpartition(':')[2]}",
        f"    maxconn {WATCHERS}",
        f"    timeout client {WATCHER_S}s",
        f"    timeout http-request {WATCHER_S}s",
        f"    timeout http-keep-alive {WATCHER_S}s",
    ]


def _for_all() -> list[str]:
    return [
        f"    {_answer('http-error', 408, _SLOW, 'too-slow')}",
        *(f"    {_answer('http-error', status, _ABSENT)}" for status in (502, 503, 504)),
        f"    timeout tunnel {SILENT_S}s",
        "    unique-id-format %[uuid()]",
        "    option srvtcpka",
        "    srvtcpka-idle 1s",
        "    srvtcpka-intvl 1s",
        f"    srvtcpka-cnt {ASKED}",
    ]


def _for_callers(rules: Rules) -> list[str]:
    """Return the rules of the service: only it leaves loopback, and only if it shall."""
    host = f"[{rules.host}]" if ":" in rules.host else rules.host
    is_small = f"{{ req.hdr_val(content-length) 1:{REPEATED} }}"
    is_kept = f"{{ sc_conn_cur(0) le {KEPT_OF_ADDRESS} }} {{ sc_conn_cur(1) le {KEPT} }}"
    return [
        f"    bind {host}:{rules.port}",
        f"    timeout http-request {HEAD_S}s",
        "    stick-table type ip size 10k expire 60s store conn_cur",
        f"    http-request set-var({_NAME}) unique-id",
        f"    http-request set-var({_NAME}) {_GIVEN} if {{ {_GIVEN} -m reg ^[!-~]{{1,128}}$ }}",
        *_for_tokens(rules),
        f"    http-request set-header {KEY_HEADER} {rules.key}",
        # A replica would compress maps in its event loop, 0.3 s for one of 1024 x 1024 px.
        "    http-request del-header sec-websocket-extensions",
        f"    http-request set-header {REQUEST_HEADER} %[unique-id]",
        # Before the body is waited for: a deadline counts from here.
        f"    http-request set-header {ARRIVED_HEADER} %[date(0,ms)]",
        f"    http-request track-sc0 src if {is_small}",
        f"    http-request track-sc1 int(0) table {SENDERS} if {is_small}",
        f"    http-request wait-for-body time {BODY_S}s if {is_small} {is_kept}",
        f"    http-after-response set-header {PLATFORM_HEADER} {rules.platform}",
    ]


def _for_tokens(rules: Rules) -> list[str]:
    """Return the rule that refuses before a body is kept; replicas check which token it is."""
    if not rules.no_token:
        return []
    headers = f"hdr www-authenticate Bearer hdr x-request-id %[var({_NAME})]"
    lacks = "!{ req.hdr(authorization) -m found }"
    problem = json.loads(rules.no_token)
    of_protocol = json.dumps({"error": f"{problem['detail']}; {problem['hint']}"})
    forms = (
        ("/v1/", _content(rules.no_token)),
        # The Open Inference Protocol has errors of its own; who asks for health needs no token.
        ("/v2/models/ /v2/repository/", _content(of_protocol, "application/json")),
    )
    return [
        f"    http-request return status 401 {content} {headers} if {{ path_beg {paths} }} {lacks}"
        for paths, content in forms
    ]


# The id of a request: what its caller gave, or a new one.
_NAME, _GIVEN = "txn.manybeam_name", "req.fhdr(x-request-id)"
NAME = "NAME"  # where a problem says it
_AGAIN = "send the same request again soon"
_SAID = {  # title and hint of each problem
    "no-capacity": ("The service answers but cannot accept this request now", _AGAIN),
    "too-slow": ("A request body arrives too slowly", _AGAIN),
    "work-failed": (
        "A job, member or step failed",
        "its frame may be the reason: keep the frame, and report this request id",
    ),
}


def _answer(rule: str, status: int, detail: str, kind: str = "no-capacity") -> str:
    """Return a rule that answers with a problem (RFC 9457), as the service itself does."""
    title, hint = _SAID[kind]
    problem = {
        "type": f"urn:manybeam:{kind}",
        "title": title,
        "status": status,
        "detail": detail,
        "hint": hint,
        "request_id": NAME,
    }
    later = " hdr retry-after 1" if hint is _AGAIN else ""
    return f"{rule} status {status} {_content(json.dumps(problem))}{later}"


def _content(problem: str, media: str = "application/problem+json") -> str:
    """Return the content of an answer: a problem as JSON, with the id of the request."""
    said = json.dumps(NAME)
    text = problem.replace("%", "%%").replace(said, f'"%[var({_NAME}),json(ascii)]"')
    quoted = text.replace("'", r"'\''")  # as in a shell
    return f"content-type {media} lf-string '{quoted}'"


def main(arguments: list[str]) -> None:
    """Add the rules to the file that HAProxy is told to read, and become HAProxy."""
    rules, binary, *others = arguments
    path = Path(others[others.index("-f") + 1])
    path.write_text(with_rules(path.read_text(), Rules(**json.loads(Path(rules).read_text()))))
    os.execve(binary, [binary, *others], {**os.environ, **KEEP_MEMORY})  # noqa: S606 - no shell


if __name__ == "__main__":
    main(sys.argv[1:])
