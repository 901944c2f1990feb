"""The monitor of a service with its parts, from the settings."""

from collections.abc import Callable

from manybeam.db.deployment import open_database
from manybeam.db.serving.alerts import Alerts
from manybeam.serve.metrics import Meter
from manybeam.serve.monitor.doubtful import DoubtfulFrames
from manybeam.serve.monitor.known_watches import KnownWatches
from manybeam.serve.monitor.monitor import Monitor
from manybeam.serve.monitor.webhook import Webhook


def stored_alerts() -> Alerts:
    """Return the alerts of the settings' database; raises an error if it is away."""
    return Alerts(open_database())


def make_monitor() -> tuple[Monitor, Callable[[], None]]:
    """Return the monitor, and what ends its parts."""
    known, doubtful, webhook = KnownWatches(), DoubtfulFrames(), Webhook(stored_alerts)
    webhook.start()

    def close() -> None:
        for part in (webhook, doubtful, known):
            part.close()

    return Monitor(known, stored_alerts, doubtful, Meter(), webhook.wake), close
