"""Where the servers of a replica listen, and whom they answer: where and who asks, and no others.

Ray binds them to the address of the service, and one of them, which unpickles, to all addresses.
"""

import json
import secrets
import uuid
from typing import Any

from starlette.middleware import Middleware

from manybeam.asgi import NamesPlatform
from manybeam.errors import NotAllowed, WorkFailed, http_status, problem
from manybeam.serve.edge.proxied import SCOPE_KEY, ProxyHeaders
from manybeam.serve.haproxy_rules import KEY_HEADER

LOOPBACK = "127.0.0.1"
_HEAD = "node:__internal_head__"  # Ray's name of the resource that only the head has


def listen_inside(platform: str) -> bool:
    """Let the servers that Ray will start in this replica listen inside and name the platform.

    Beside the head, HAProxy asks a replica on loopback, and on another host at the address of that
    host. Ray's other processes ask at the address of the host. On one host both are loopback.
    Ray answers some requests itself, before our application; HAProxy must know these too.

    Args:
        platform: the id of the platform.

    Returns:
        Whether HAProxy is on the host of this replica.

    Raises:
        WorkFailed: this Ray starts its servers in another way.
    """
    from ray.serve._private import replica

    names = ("add_port_to_grpc_server", "start_asgi_http_server")
    if missing := [name for name in names if not hasattr(replica, name)]:
        raise WorkFailed(
            f"this version of Ray has no {' and no '.join(missing)}",
            "without them a replica would listen on all addresses",
            "install the version of Ray in constraints.txt",
        )
    host, for_proxy = _own_addresses()
    add_port, start_http = (getattr(replica, name) for name in names)

    def add_port_inside(server: Any, address: str) -> int:
        port = address.rpartition(":")[2]
        return int(add_port(server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))

    async def start_http_inside(app: Any, options: Any, **more: Any) -> Any:
        outermost = Middleware(NamesPlatform, platform=platform)
        ours = {"host": for_proxy, "middlewares": [*options.middlewares, outermost]}
        return await start_http(app, options.model_copy(update=ours), **more)

    for name, inside in zip(names, (add_port_inside, start_http_inside), strict=True):
        setattr(replica, name, inside)
    return for_proxy == LOOPBACK


def _own_addresses() -> tuple[str, str]:
    """Return where Ray asks this replica, and where HAProxy does."""
    import ray

    nodes: Any = ray.nodes  # Ray's lacks types
    own = ray.get_runtime_context().get_node_id()
    (node,) = [one for one in nodes() if one["NodeID"] == own]
    host = str(node["NodeManagerAddress"])
    return host, LOOPBACK if _HEAD in node["Resources"] else host


class ForProxyOnly:
    """Answers only the proxy of the service, which shows a key; other hosts reach a replica too.

    Args:
        app: the ASGI application of the replica.
        key: what the proxy shows; "" if it shows nothing, because it asks by Ray alone.
        headers: reads what the proxy tells with the key.
    """

    def __init__(self, app: Any, key: str, headers: ProxyHeaders) -> None:
        self._app, self._key, self._headers = app, key.encode(), headers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        given = dict(scope.get("headers", ()))
        is_shown = secrets.compare_digest(given.get(KEY_HEADER.encode(), b""), self._key)
        if scope["type"] not in ("http", "websocket") or is_shown or not self._key:
            if self._key and scope["type"] in ("http", "websocket"):
                scope = {**scope, SCOPE_KEY: self._headers.read(given)}
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # before it was accepted: 403
            return
        refused = NotAllowed("a replica answers its proxy only", "", "ask the URL of the service")
        text = json.dumps(problem(refused, uuid.uuid4().hex)).encode()
        headers = [(b"content-type", b"application/problem+json")]
        status = http_status(refused)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text})
