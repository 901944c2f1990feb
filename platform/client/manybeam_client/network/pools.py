"""Connections of urllib3 that can be cut from another thread.

A time-out bounds one read, so a server that sends a byte now and then holds a thread for ever.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from manybeam_client.network.bounded import may_be_cut


def _cut(way: Any) -> None:
    try:
        socket.socket.shutdown(way, socket.SHUT_RDWR)  # that of TLS takes its state away as well
    except (OSError, TypeError):  # it has ended, or belongs to another library
        return


class _Cuttable:
    """Notes the socket of a connection for the call that uses it."""

    sock: Any

    def _new_conn(self) -> Any:
        made = super()._new_conn()  # type: ignore[misc]  # of the class that this one is mixed with
        may_be_cut(partial(_cut, made))
        return made

    def putrequest(self, *args: Any, **more: Any) -> None:
        if self.sock is not None:  # connected before, or with TLS around it
            may_be_cut(partial(_cut, self.sock))
        super().putrequest(*args, **more)  # type: ignore[misc]  # see above


class _Plain(_Cuttable, HTTPConnection):
    pass


class _Tls(_Cuttable, HTTPSConnection):
    pass


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Tls


_POOLS = {"http": _PlainPool, "https": _TlsPool}


class CutManager(urllib3.PoolManager):
    """Makes connections that can be cut.

    Args:
        options: of urllib3.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.pool_classes_by_scheme = dict(_POOLS)


class CutProxyManager(urllib3.ProxyManager):
    """Makes connections over a proxy that can be cut.

    Args:
        proxy: its URL.
        options: of urllib3.
    """

    def __init__(self, proxy: str, **options: Any) -> None:
        super().__init__(proxy, **options)
        self.pool_classes_by_scheme = dict(_POOLS)
