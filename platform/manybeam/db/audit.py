"""The audit log: who did what to which version and why, each record chained to the one before.

Records are numbered from 1 without a gap, and their bytes are never changed. Each contains the
SHA-256 of the record before. So `verify` finds a record that was changed, removed or inserted.
Writers take turns on one row that names the last record.
"""

import hashlib
import json
import logging
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, Row, func, insert, or_, select, update

from manybeam.db.database import Database, now
from manybeam.db.imports import is_marked, mark
from manybeam.db.owner import process_name
from manybeam.db.tables import AuditHead, AuditRecord
from manybeam.errors import Conflict, Corrupt, InvalidInput

logger = logging.getLogger(__name__)

KIND = "audit"
UNREADABLE = "unreadable"  # action of a record that cannot be read
MAX_WHO, MAX_REASON = 100, 2000  # characters
_EMPTY = (0, "")


@dataclass(frozen=True)
class Entry:
    """One record of the log.

    Attributes:
        number: its number, from 1.
        when: UTC, ISO 8601, by the writer's clock.
        action: the action, as `promote asked`; `unreadable` if the record is damaged.
        subject: the version or ensemble, as `graphene@3`.
        who: the person, as `ada@node7`.
        reason: the reason that the person gave.
        details: other facts, as plain data.
        previous: SHA-256 of the bytes of the record before; "" for the first.
        writer: host and process that wrote it.
        id: random, so that no two records have the same bytes.
        format: format of the stored bytes.
    """

    number: int
    when: str
    action: str
    subject: str
    who: str
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    previous: str = ""
    writer: str = ""
    id: str = ""
    format: Literal["manybeam-audit-1"] = "manybeam-audit-1"

    def is_about(self, subject: str) -> bool:
        """Whether this is about a version, or about any version of an ensemble.

        Example:
            >>> Entry(1, "", "archive", "graphene@3", "ada").is_about("graphene")
            True
        """
        return self.subject == subject or self.subject.startswith((f"{subject}@", f"{subject}/"))


@dataclass(frozen=True)
class Chain:
    """The number of records of a verified log, and the SHA-256 of the last one.

    A person who can write to the database can remove records from the end, and change the row that
    names the last one. To detect this, keep `anchor` elsewhere and pass it to a later `verify`.
    """

    count: int
    sha256: str

    @property
    def anchor(self) -> str:
        """Number and digest of the last record, as `17:9f86d0...`."""
        return f"{self.count}:{self.sha256}"


_AS_ENTRY = TypeAdapter(Entry)
_COLUMNS = (AuditRecord.number, AuditRecord.content, AuditRecord.sha256, AuditRecord.ensemble)


class AuditLog:
    """The log of one database.

    Args:
        database: where it is kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def database(self) -> Database:
        """Where it is kept."""
        return self._database

    def head(self) -> int:
        """Return the number of the last record; 0 if there is none."""
        with self._database.reading() as connection:
            return _head(connection)[0]

    def entries(self, subject: str | None = None, *, limit: int | None = None) -> list[Entry]:
        """Return the records about a version or an ensemble, or all, newest first.

        Among all records, one that cannot be read has the action `unreadable`.

        Args:
            subject: an ensemble, or a version of it.
            limit: the largest number of records.
        """
        wanted = select(*_COLUMNS).order_by(AuditRecord.number.desc()).limit(limit)
        with self._database.reading() as connection:
            return [_entry(row) for row in connection.execute(wanted.where(*_about(subject)))]

    def count(self, subject: str | None = None) -> int:
        """Return the number of records about a version or an ensemble, or of all."""
        with self._database.reading() as connection:
            counted = select(func.count()).select_from(AuditRecord).where(*_about(subject))
            return int(connection.execute(counted).scalar_one())

    def since(self, number: int) -> list[Entry]:
        """Return the records after a number, oldest first."""
        with self._database.reading() as connection:
            return _since(connection, number)

    def append(
        self,
        action: str,
        subject: str,
        *,
        who: str,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        since: int | None = None,
        unless: Callable[[Entry], bool] = lambda _: False,
    ) -> Entry:
        """Write the next record and return it.

        Args:
            action: the action.
            subject: the version or ensemble.
            who: the person.
            reason: the reason.
            details: other facts, as plain data.
            since: number of the last record that the caller has read; if left out, the last one.
            unless: called with each record after `since`; if it returns True, nothing is written.

        Raises:
            Conflict: `unless` returned True; the message names the record.
            InvalidInput: no name, or a text that is too long.
            DatabaseUnreachable, WriteFailed: the record could not be written.
        """
        with self._database.writing() as connection:
            last = _head(connection, is_locked=True)[0]
            for one in _since(connection, last if since is None else since):
                if unless(one):
                    raise _forbidden(one)
            return append(connection, action, subject, who=who, reason=reason, details=details)

    def verify(self, anchor: str = "") -> Chain:
        """Read every record and return the chain if every digest is right.

        Args:
            anchor: an earlier `Chain.anchor`; that record must be unchanged.

        Raises:
            Corrupt: names the first record that is missing, unreadable, or has a wrong digest.
            InvalidInput: the anchor has a wrong form.
        """
        number, sha256 = _read_anchor(anchor)
        last, before, anchored = 0, "", number == 0
        with self._database.reading() as connection:
            head = _head(connection)
            for row in connection.execute(select(*_COLUMNS).order_by(AuditRecord.number)):
                if fault := _fault(row, last, before):
                    raise _broken(last + 1, fault)
                last, before = row.number, hashlib.sha256(row.content).hexdigest()
                anchored = anchored or (last, before) == (number, sha256)
        if head != (last, before):
            raise _broken(last + 1, "it is missing, or the row that names the last is not true")
        if not anchored:
            raise _broken(number, "it is not the record the anchor was taken of, or it is gone")
        return Chain(last, before)

    def take_over(self, contents: Mapping[int, bytes], place: str) -> int:
        """Import the records of an older version's log unchanged; return their number.

        Records that cannot be read are imported too. If this was done before, nothing is done.

        Args:
            contents: the bytes of each record, by its number.
            place: the store of the old log.
        """
        with self._database.writing() as connection:
            _head(connection, is_locked=True)
            if is_marked(connection, KIND):
                return 0
            _write(connection, sorted(contents.items()))
            bad = sum(_read(number, one).action == UNREADABLE for number, one in contents.items())
            mark(connection, KIND, place, count=len(contents), unreadable=bad)
        return len(contents)


def append(
    connection: Connection,
    action: str,
    subject: str,
    *,
    who: str,
    reason: str = "",
    details: Mapping[str, Any] | None = None,
) -> Entry:
    """Write the next record in the transaction of what it is about, and return it.

    Args and errors are those of `AuditLog.append`.
    """
    who, reason = checked_who(who), checked_reason(reason)
    last, before = _head(connection, is_locked=True)
    entry = Entry(
        last + 1,
        datetime.now(UTC).isoformat(timespec="milliseconds"),
        action,
        subject,
        who,
        reason,
        dict(details or {}),
        before,
        process_name(),
        uuid.uuid4().hex,
    )
    _write(connection, [(entry.number, _bytes(entry))])
    logger.info("audited", extra={"action": action, "subject": subject, "who": who})
    return entry


def checked_who(who: str) -> str:
    """Return a name on one line; raises InvalidInput."""
    name = " ".join(who.split())
    if not 0 < len(name) <= MAX_WHO:
        raise InvalidInput(
            f"{name[:40]!r} does not name a person", f"1 to {MAX_WHO} characters", ""
        )
    return name


def checked_reason(reason: str) -> str:
    """Return a reason without blanks around it; raises InvalidInput."""
    reason = reason.strip()
    if len(reason) > MAX_REASON:
        raise InvalidInput(f"a reason of {len(reason)} characters", f"at most {MAX_REASON}", "")
    return reason


def _head(connection: Connection, *, is_locked: bool = False) -> tuple[int, str]:
    """Return number and SHA-256 of the last record; if locked, no other process can append."""
    wanted = select(AuditHead.number, AuditHead.sha256)
    found = connection.execute(wanted.with_for_update() if is_locked else wanted).first()
    if found is None:
        raise Corrupt(
            "the audit log does not name its last record", "", "manybeam restore a backup"
        )
    return found.number, found.sha256


def _since(connection: Connection, number: int) -> list[Entry]:
    wanted = select(*_COLUMNS).where(AuditRecord.number > number).order_by(AuditRecord.number)
    return [_entry(row) for row in connection.execute(wanted)]


def _about(subject: str | None) -> Sequence[Any]:
    """Return the conditions of records about a version, or about any version of an ensemble."""
    if subject is None:
        return ()
    own = AuditRecord.subject
    starts = [func.substr(own, 1, len(subject) + 1) == f"{subject}{mark}" for mark in "@/"]
    return (AuditRecord.ensemble == _ensemble(subject), or_(own == subject, *starts))


def _ensemble(subject: str) -> str:
    return re.split("[@/]", subject, maxsplit=1)[0]


def _write(connection: Connection, contents: Iterable[tuple[int, bytes]]) -> None:
    """Write records and the row that names the last of them."""
    rows, at = [], now(connection)
    for number, content in contents:
        subject, sha256 = _read(number, content).subject, hashlib.sha256(content).hexdigest()
        row = {"number": number, "content": content, "sha256": sha256, "written": at}
        rows.append(row | {"subject": subject, "ensemble": _ensemble(subject)})
    if rows:
        connection.execute(insert(AuditRecord), rows)
        last = {"number": rows[-1]["number"], "sha256": rows[-1]["sha256"]}
        connection.execute(update(AuditHead).values(last))


def _bytes(entry: Entry) -> bytes:
    return json.dumps(_AS_ENTRY.dump_python(entry, mode="json"), indent=1).encode()


def _entry(row: Row[int, bytes, str, str]) -> Entry:
    return _read(row.number, row.content)


def _read(number: int, content: bytes) -> Entry:
    """Return one record; a damaged one must not hide the others."""
    try:
        return _AS_ENTRY.validate_json(content)
    except ValidationError as error:
        why = f"it cannot be read: {str(error).splitlines()[0]}"
        return Entry(number, "", UNREADABLE, "", "", details={"why": why})


def _fault(row: Row[int, bytes, str, str], last: int, before: str) -> str:
    """Return what is wrong with one record; "" if it is right."""
    if row.number != last + 1:
        return "it is missing"
    entry = _entry(row)
    if entry.action == UNREADABLE:
        return str(entry.details["why"])
    if entry.number != row.number:
        return f"it says that it is record {entry.number}"
    if entry.previous != before:
        return f"record {last} is not the one that was there when it was written"
    if (row.sha256, row.ensemble) != (
        hashlib.sha256(row.content).hexdigest(),
        _ensemble(entry.subject),
    ):
        return "the columns beside it were changed"
    return ""


def _read_anchor(anchor: str) -> tuple[int, str]:
    if not anchor:
        return _EMPTY
    match = re.fullmatch(r"([0-9]{1,9}):([0-9a-f]{64})", anchor)
    if match is None:
        raise InvalidInput(
            f"{anchor!r} is no anchor", "number:sha256, as `zoo audit --verify` printed it", ""
        )
    return int(match[1]), match[2]


def _forbidden(entry: Entry) -> Conflict:
    return Conflict(
        f"{entry.subject}: {entry.who} came first with {entry.action!r}",
        f"record {entry.number} of the audit log was written meanwhile",
        f"manybeam zoo audit {_ensemble(entry.subject)}, then decide again",
    )


def _broken(number: int, fault: str) -> Corrupt:
    return Corrupt(
        f"the audit log is broken at record {number}: {fault}",
        "records are never changed: the database was changed by hand, or it lost a row",
        f"compare records {max(number - 1, 1)} and {number} with a backup",
    )
