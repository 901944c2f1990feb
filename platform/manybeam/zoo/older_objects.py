"""Import of the small objects that older versions kept in the store into the database.

The objects are in the folders `audit`, `picks` and `predictions` of the store. They are imported
once, at the first use, and then stay there unread.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from manybeam.data.store import Store, open_store
from manybeam.db import audit, predictions, preference
from manybeam.db.audit import AuditLog
from manybeam.db.database import Database
from manybeam.db.deployment import open_database
from manybeam.db.imports import is_imported
from manybeam.db.predictions import Predictions
from manybeam.db.preference import Preference, Retraction, read_preference
from manybeam.db.preferences import Preferences
from manybeam.errors import NotAllowed, NotFound
from manybeam.settings import settings

logger = logging.getLogger(__name__)

_READERS = 16
_RECORD = re.compile(r"([0-9]{9})\.json")
_RETRACTED = ".retracted.json"
_done: set[tuple[str, str]] = set()  # imported (database, kind), as far as this process knows


def audit_log() -> AuditLog:
    """Return the deployment's audit log, with the records of older versions.

    Raises:
        DatabaseUnreachable: the database does not answer.
        StoreUnreachable: nothing was imported yet, and the store does not answer.
    """
    return AuditLog(_with_older(audit.KIND, "audit", _take_audit))


def preferences_kept() -> Preferences:
    """Return the preferences, also of older versions; raises as `audit_log`."""
    return Preferences(_with_older(preference.KIND, "picks", _take_preferences))


def predictions_kept() -> Predictions:
    """Return the URLs of answers, also of older versions; raises as `audit_log`."""
    return Predictions(_with_older(predictions.KIND, "predictions", _take_predictions))


def _with_older(kind: str, folder: str, take: Callable[[Database, Store], int]) -> Database:
    database = open_database()
    mark = (database.place, kind)
    if mark not in _done:
        if not is_imported(database, kind):
            store = open_store(settings().store_url).child(folder)
            count = take(database, store)
            logger.info("older objects taken over", extra={"kind": kind, "count": count})
        _done.add(mark)
    return database


def _take_audit(database: Database, store: Store) -> int:
    found = _contents(store, [key for key in store.list() if _RECORD.fullmatch(key)])
    records = {int(key[:9]): content for key, content in found.items()}
    return AuditLog(database).take_over(records, store.url)


def _take_preferences(database: Database, store: Store) -> int:
    keys = [key for key in store.list() if key.endswith(".json")]
    found = _contents(store, keys)
    ours = {key: one for key, one in found.items() if not key.endswith(_RETRACTED)}
    read = [read_preference(one, f"{store.url}/{key}") for key, one in ours.items()]
    kept = _one_each(one for one in read if one is not None)
    back = {_retracted(key): _retraction(key, one, store) for key, one in found.items()
            if key.endswith(_RETRACTED)}  # fmt: skip
    return Preferences(database).take_over(kept, back, store.url, unreadable=len(ours) - len(kept))


def _one_each(found: Iterable[Preference]) -> list[Preference]:
    return list({one.id: one for one in found}.values())


def _retracted(key: str) -> str:
    """Return the id of the preference that an object takes back."""
    return key.rpartition("/")[2].removesuffix(_RETRACTED)


def _retraction(key: str, content: bytes, store: Store) -> Retraction:
    """Return who took a preference back. An object that cannot be read also takes it back."""
    try:
        fields = json.loads(content)
        return Retraction(str(fields["who"]), datetime.fromisoformat(fields["when"]))
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s/%s does not say who took it back: %s", store.url, key, error)
        return Retraction("", datetime.now(UTC))


def _take_predictions(database: Database, store: Store) -> int:
    found = _contents(store, [key for key in store.list() if key.endswith(".json")])
    rows = []
    for key, content in found.items():
        try:
            fields = json.loads(content)
            rows.append((key.split("/")[0], fields["url"], datetime.fromisoformat(fields["made"])))
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s/%s cannot be read and is left out: %s", store.url, key, error)
    missing = len(found) - len(rows)
    return Predictions(database).take_over(rows, store.url, unreadable=missing)


def _contents(store: Store, keys: list[str]) -> Mapping[str, bytes]:
    """Return objects by key; one that cannot be read is logged, and empty."""

    def read(key: str) -> bytes:
        try:
            return store.get(key)
        except (NotFound, NotAllowed) as error:
            logger.warning("%s/%s cannot be read: %s", store.url, key, error)
            return b""

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(keys, pool.map(read, keys), strict=True))
