"""Speed of the audit log: records written and listed, of a log that holds 10,000."""

import hashlib
import json
from typing import Any

import pytest

from manybeam.db.audit import AuditLog
from manybeam.db.database import Database

COUNT = 10_000
DETAILS = {"alias": "serving", "from": 1, "to": 2}


@pytest.fixture
def log(database: Database) -> AuditLog:
    """A log of 10,000 records, taken over at once."""
    found, before = {}, ""
    for number in range(1, COUNT + 1):
        told = {"number": number, "when": "2026-03-01T10:00:00.000+00:00", "reason": ""}
        told |= {"action": "promote asked", "subject": f"graphene@{number}", "who": "ada@node7"}
        told |= {"details": DETAILS, "previous": before, "format": "manybeam-audit-1"}
        found[number] = json.dumps(told, indent=1).encode()
        before = hashlib.sha256(found[number]).hexdigest()
    made = AuditLog(database)
    made.take_over(found, "memory")
    return made


def test_append(benchmark: Any, log: AuditLog) -> None:
    def append() -> None:
        log.append("promote asked", "graphene@3", who="ada", details=DETAILS)

    benchmark.pedantic(append, rounds=100, warmup_rounds=5)


def test_the_newest_hundred(benchmark: Any, log: AuditLog) -> None:
    benchmark.pedantic(lambda: log.entries(limit=100), rounds=20, warmup_rounds=2)
    if not benchmark.disabled:
        assert benchmark.stats.stats.median < 0.1


def test_all_of_them(benchmark: Any, log: AuditLog) -> None:
    benchmark.pedantic(log.entries, rounds=5, warmup_rounds=1)


def test_verify(benchmark: Any, log: AuditLog) -> None:
    benchmark.pedantic(log.verify, rounds=3, warmup_rounds=1)
