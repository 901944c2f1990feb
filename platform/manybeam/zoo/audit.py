"""The audit log: who did what to which version and why, each record chained to the one before.

Records lie in the facility's store, one small JSON object each, numbered from 1 without a gap. A
record is written only if its number is free, so of two writers one wins and the other reads what
came between before it takes the next number. Each holds the SHA-256 of the bytes of the one
before: none can be changed, taken out or put in without `verify` naming the place.
"""

import getpass
import json
import logging
import os
import re
import socket
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from manybeam.data.store import open_store
from manybeam.errors import Conflict, Corrupt, InvalidInput, NotFound
from manybeam.settings import settings
from manybeam.zoo.cache import sha256_of

logger = logging.getLogger(__name__)

FOLDER = "audit"
UNREADABLE = "unreadable"  # action of a record that cannot be read
MAX_WHO, MAX_REASON = 100, 2000  # characters
_KEY = re.compile(r"([0-9]{9})\.json")
_TRIES = 200  # each that fails means that somebody else's record was written
_READERS = 16


@dataclass(frozen=True)
class Entry:
    """One record of the log.

    Attributes:
        number: its place, from 1.
        when: UTC, ISO 8601, by the writer's clock.
        action: what was done, as `promote asked`; `unreadable` if the record is damaged.
        subject: to what, as `graphene@3`.
        who: by whom, as `ada@node7`.
        reason: why, in their words.
        details: what else is worth keeping, as plain data.
        previous: SHA-256 of the bytes of the record before; "" of the first.
        writer: host and process that wrote it.
        id: drawn, so that a writer knows its own record again.
        format: of the stored object.
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
    """A log whose every link holds: how many records, and the SHA-256 of the last one's bytes.

    What was taken off the end leaves a shorter chain that holds as well. Whoever keeps `anchor`
    elsewhere and gives it to a later `verify` finds that out.
    """

    count: int
    sha256: str

    @property
    def anchor(self) -> str:
        """The last record in one word: `17:9f86d0...`."""
        return f"{self.count}:{self.sha256}"


_AS_ENTRY = TypeAdapter(Entry)


class AuditLog:
    """The log of one deployment; an object of it reads each record once.

    Args:
        store_url: the facility's store; the settings' if left out.
    """

    def __init__(self, store_url: str | None = None) -> None:
        self._store = open_store(store_url or settings().store_url).child(FOLDER)
        self._known: dict[int, tuple[Entry, str]] = {}

    def head(self) -> int:
        """Return the number of the last record; 0 if there is none."""
        self._read_on()
        return max(self._known, default=0)

    def entries(self, subject: str | None = None) -> list[Entry]:
        """Return the records about a version or an ensemble, or all, newest first.

        One that cannot be read is among all of them, with the action `unreadable`.
        """
        found = self.since(0)[::-1]
        return found if subject is None else [one for one in found if one.is_about(subject)]

    def since(self, number: int) -> list[Entry]:
        """Return the records after a number, oldest first."""
        self._read_on()
        return [self._known[one][0] for one in sorted(self._known) if one > number]

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
            action: what is done.
            subject: to what.
            who: by whom.
            reason: why.
            details: plain data.
            since: number of the last record the caller has seen; the present last if left out.
            unless: told of a record after `since`, says whether it forbids this one. It is asked
                of all that come before the new record, however late they come.

        Raises:
            Conflict: `unless` forbade it; the record it spoke of is named.
            InvalidInput: no name, or words that are too long.
            StoreUnreachable, WriteFailed: it could not be kept.
        """
        who, reason = checked_who(who), checked_reason(reason)
        mark, seen = uuid.uuid4().hex, self.head() if since is None else since
        for _ in range(_TRIES):
            later = self.since(seen)
            if own := [one for one in later if one.id == mark]:
                return own[0]  # written, though the answer of the store was lost
            for one in later:
                if unless(one):
                    raise _forbidden(one)
            number = max(self._known, default=0) + 1  # not read anew: all up to it were asked about
            before = self._known[number - 1][1] if number > 1 else ""
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            plain = dict(details or {})
            entry = Entry(
                number, now, action, subject, who, reason, plain, before, writer_id(), mark
            )
            if self._create(entry):
                logger.info("audited", extra={"action": action, "subject": subject, "who": who})
                return entry
        raise Conflict(f"{action} of {subject} cannot be recorded", "too many write at once", "")

    def age_s(self, entry: Entry) -> float:
        """Return how long ago a record was written, by the store's clock."""
        return self._store.age_s(_key(entry.number))

    def verify(self, anchor: str = "") -> Chain:
        """Read every record anew and return the chain if each link holds.

        Args:
            anchor: what `Chain.anchor` was once; that record has to be the same today.

        Raises:
            Corrupt: names the first record that is missing, unreadable or does not follow.
            InvalidInput: the anchor is none.
        """
        self._known.clear()
        self._read_on()
        before = ""
        for number in range(1, max(self._known, default=0) + 1):
            if fault := self._fault(number, before):
                raise _broken(number, fault)
            before = self._known[number][1]
        chain = Chain(len(self._known), before)
        self._check_anchor(anchor)
        return chain

    def _fault(self, number: int, before: str) -> str:
        """Return what is wrong with the link to one record; "" if nothing is."""
        if number not in self._known:
            return "it is missing"
        entry = self._known[number][0]
        if entry.action == UNREADABLE:
            return str(entry.details["why"])
        if entry.number != number:
            return f"it says that it is record {entry.number}"
        if entry.previous != before:
            return f"record {number - 1} is not the one that was there when it was written"
        return ""

    def _check_anchor(self, anchor: str) -> None:
        if not anchor:
            return
        match = re.fullmatch(r"([0-9]{1,9}):([0-9a-f]{64})", anchor)
        if match is None:
            raise InvalidInput(f"{anchor!r} is no anchor", "number:sha256, as verify told", "")
        number, sha256 = int(match[1]), match[2]
        if self._known.get(number, (None, ""))[1] != sha256:
            raise _broken(number, "it is not the record the anchor was taken of, or it is gone")

    def _create(self, entry: Entry) -> bool:
        """Write a record if its number is free, and say so."""
        content = json.dumps(_AS_ENTRY.dump_python(entry, mode="json"), indent=1).encode()
        try:
            self._store.create(_key(entry.number), content)
        except Conflict:
            return False
        self._known[entry.number] = (entry, sha256_of(content))
        return True

    def _read_on(self) -> None:
        """Read what was written since the last time."""
        last = max(self._known, default=0)
        keys = self._store.list(after=_key(last) if last else "")
        numbers = [int(match[1]) for key in keys if (match := _KEY.fullmatch(key))]
        with ThreadPoolExecutor(min(_READERS, len(numbers) or 1)) as pool:
            self._known.update(zip(numbers, pool.map(self._read, numbers), strict=True))

    def _read(self, number: int) -> tuple[Entry, str]:
        """Return one record and its SHA-256; one damaged record must not hide the others."""
        try:
            content = self._store.get(_key(number))
            return _AS_ENTRY.validate_json(content), sha256_of(content)
        except (ValidationError, NotFound) as error:
            why = f"it cannot be read: {str(error).splitlines()[0]}"
            logger.warning("audit record %d: %s", number, why)
            sha256 = "" if isinstance(error, NotFound) else sha256_of(content)
            return Entry(number, "", UNREADABLE, "", "", details={"why": why}), sha256


def whoami() -> str:
    """Return the login and the host of this process: `ada@node7`."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # no such user, or none at all
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def writer_id() -> str:
    """Return the host and the number of this process."""
    return f"{socket.gethostname()} {os.getpid()}"


def is_gone(writer: str) -> bool:
    """Whether a writer is a process of this host that runs no more; False if that is unknown."""
    host, _, pid = writer.partition(" ")
    if host != socket.gethostname() or not pid.isdigit() or os.name != "posix":
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it runs, as somebody else
    return False


def checked_who(who: str) -> str:
    """Return a name on one line; raises InvalidInput."""
    name = " ".join(who.split())
    if not 0 < len(name) <= MAX_WHO:
        raise InvalidInput(
            f"{name[:40]!r} does not tell who does it", f"1 to {MAX_WHO} characters", ""
        )
    return name


def checked_reason(reason: str) -> str:
    """Return a reason without blanks around it; raises InvalidInput."""
    reason = reason.strip()
    if len(reason) > MAX_REASON:
        raise InvalidInput(f"a reason of {len(reason)} characters", f"at most {MAX_REASON}", "")
    return reason


def _key(number: int) -> str:
    return f"{number:09d}.json"


def _forbidden(entry: Entry) -> Conflict:
    return Conflict(
        f"{entry.subject}: {entry.who} came first with {entry.action!r}",
        f"record {entry.number} of the audit log, written while this was judged",
        f"manybeam zoo audit {entry.subject.partition('@')[0]}, then decide again",
    )


def _broken(number: int, fault: str) -> Corrupt:
    return Corrupt(
        f"the audit log is broken at record {number}: {fault}",
        "records are never changed: somebody wrote to the store, or it lost an object",
        f"compare {FOLDER}/{_key(max(number - 1, 1))} and {_key(number)} with a backup",
    )
