"""The monitor of a service with its parts, from the settings."""

import threading
from collections.abc import Callable
from importlib import import_module

from manybeam.db.deployment import open_database
from manybeam.db.serving.alerts import Alerts
from manybeam.serve.metrics import Meter
from manybeam.serve.monitor.alert_writer import AlertWriter
from manybeam.serve.monitor.doubtful import DoubtfulFrames
from manybeam.serve.monitor.known_watches import KnownWatches
from manybeam.serve.monitor.monitor import Monitor
from manybeam.serve.monitor.watched_sessions import WatchedSessions
from manybeam.serve.monitor.webhook import Webhook
from manybeam.settings import settings


def stored_alerts() -> Alerts:
    """Return the alerts of the settings' database; raises an error if it is away."""
    return Alerts(open_database())


def make_monitor() -> tuple[Monitor, Callable[[], None]]:
    """Return the monitor, and what ends its parts."""
    here, meter = settings(), Meter()
    # The first fit of a watch would import it while the frames of all sessions wait.
    threading.Thread(target=import_module, args=("sklearn.covariance",), daemon=True).start()
    known, doubtful = KnownWatches(), DoubtfulFrames(here.store_url, meter.doubtful)
    sessions = WatchedSessions(known, here.cache / "watched")
    webhook = None
    if here.webhook_url:
        webhook = Webhook(
            stored_alerts, here.webhook_url, here.webhook_secret, count=meter.notification
        )
        webhook.start()

    alerts = AlertWriter(stored_alerts, webhook.wake if webhook else None)

    def close() -> None:
        for part in (alerts, webhook, doubtful, known):
            if part is not None:
                part.close()

    return Monitor(sessions, alerts, doubtful, meter), close
