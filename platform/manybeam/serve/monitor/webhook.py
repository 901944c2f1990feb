"""Alerts are sent to a URL of the facility by POST, signed, and again until somebody takes them.

Source: the specification Standard Webhooks, 1.0.0 (standardwebhooks.com). Its signature is ten
lines of the standard library, so its package is not needed.
"""

import base64
import hashlib
import hmac
import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request

from pydantic import SecretStr

from manybeam import __version__
from manybeam.db.serving.alerts import Alert, Alerts
from manybeam.errors import ManybeamError
from manybeam.serve.monitor.short_requests import short_opener
from manybeam.settings import webhook_key

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0  # of connecting, and of each wait for the answer
TRY_S = 20.0  # of a whole try, however slowly the receiver answers
HOLD_S = 120.0  # no other process sends the same alert meanwhile; by the database's clock
IDLE_S = 5.0  # between two looks at the database; `wake` ends it
FIRST_PAUSE_S, MOST_PAUSE_S = 5.0, 3600.0
GROWTH = 3.0
GONE = 410  # the receiver asks for no more messages


class Webhook:
    """Sends the alerts that are due, in a thread of its own.

    Args:
        alerts: returns the alerts that wait in the database, or raises an error if it is away;
            other processes may send them too.
        url: where to.
        secret: that signs the messages.
        seed: of the random part of pauses, so that several senders do not come at once.
        count: is told what became of a message: `delivered` or `failed`.
    """

    def __init__(
        self,
        alerts: Callable[[], Alerts],
        url: str,
        secret: SecretStr,
        seed: int | None = None,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._alerts, self._url, self._key = alerts, url, webhook_key(secret)
        self._count = count
        self._random = random.Random(seed)  # noqa: S311 - pauses are no secret
        self._opener = short_opener(TRY_S)
        self._wake, self._is_closed = threading.Event(), False
        self._is_away = False
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def wake(self) -> None:
        """Look for alerts now; one was added."""
        self._wake.set()

    def close(self) -> None:
        """Stop sending; an alert that is on its way may still be taken."""
        self._is_closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(TRY_S)

    def send_due(self) -> int:
        """Send every alert that is due, the oldest first; return how many were tried.

        Raises:
            DatabaseUnreachable, WriteFailed: the alerts cannot be read or noted.
        """
        count = 0
        while not self._is_closed and (claimed := self._alerts().claim(HOLD_S)):
            count += len(claimed)
            for alert in claimed:
                self._send(alert)
        return count

    def _run(self) -> None:
        while not self._is_closed:
            self._wake.clear()
            try:
                self.send_due()
                self._is_away = False
            except ManybeamError as error:
                if not self._is_away:
                    logger.warning("alerts cannot be read: %s", error)
                self._is_away = True
            except Exception:  # the thread must go on for other alerts; those claimed come again
                logger.exception("alerts were not sent")
            if not self._is_closed:
                self._wake.wait(IDLE_S)

    def _send(self, alert: Alert) -> None:
        status, error = self._post(alert)
        self._count("delivered" if 200 <= status < 300 else "failed")
        if 200 <= status < 300:
            self._alerts().delivered(alert.id)
            return
        logger.warning("alert %d was not delivered: %s", alert.id, error)
        if status != GONE:
            self._alerts().failed(alert.id, error, self._pause_s(alert.tries))
            return
        logger.error("webhook is switched off until a restart: its receiver says 410 Gone")
        self._alerts().failed(alert.id, error, None)
        self._is_closed = True

    def _post(self, alert: Alert) -> tuple[int, str]:
        """Return the status of the answer, 0 if there is none, and what is wrong."""
        body = message(alert)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"manybeam/{__version__}",
            **signed_headers(self._key, message_id(alert), int(time.time()), body),
        }
        request = Request(self._url, body, headers, method="POST")  # noqa: S310 - settings check it
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                return int(answer.status), ""
        except HTTPError as error:
            with error:
                return error.code, f"the receiver answered {error.code} {error.reason}".strip()
        except (OSError, HTTPException, ValueError) as error:
            return 0, f"no answer: {error}"

    def _pause_s(self, tries: int) -> float:
        """Return the pause after so many failures before: 5 s, 15 s, 45 s to an hour."""
        steps = min(tries, math.ceil(math.log(MOST_PAUSE_S / FIRST_PAUSE_S, GROWTH)))
        pause_s = min(FIRST_PAUSE_S * GROWTH**steps, MOST_PAUSE_S)
        return pause_s * self._random.uniform(0.8, 1.2)


def message(alert: Alert) -> bytes:
    """Return the body of the message about an alert; the same for each try."""
    content = {
        "type": f"manybeam.{alert.kind.replace(' ', '_')}",
        "timestamp": alert.at.isoformat(),
        "data": dict(alert.content),
    }
    return json.dumps(content, sort_keys=True).encode()


def message_id(alert: Alert) -> str:
    """Return the id of the message, by which a receiver knows what it already has."""
    return f"alert-{alert.id}-{round(alert.at.timestamp() * 1000)}"


def signed_headers(key: bytes, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """Return the three headers of Standard Webhooks."""
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": f"v1,{signature}",
    }
