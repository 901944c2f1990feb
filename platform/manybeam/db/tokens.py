"""Instruments, and the tokens of instruments and programs; only the SHA-256 of a token is stored.

A token has 256 random bits, so it cannot be guessed from its hash. It can expire or be revoked. It
belongs to a person, to an instrument or, as the first one, to neither; it opens nothing while its
person is disabled or its instrument retired.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Join,
    Row,
    Select,
    and_,
    func,
    outerjoin,
    select,
    update,
)

from manybeam.db.audit import append
from manybeam.db.database import Database, insert_if_new, now
from manybeam.db.owner import whoami
from manybeam.db.tables import InstrumentRow, PersonRow, TokenRow
from manybeam.errors import Conflict, InvalidInput, NotFound

SCOPES = ("predict", "select", "ingest", "zoo:read", "zoo:promote", "jobs:submit", "admin")
WEIGHTS = (0.1, 10.0)  # the least and the largest
MAX_NAME = 300  # characters; a path fits
SEEN_S = 60.0  # `last_used` is written at most so often: a check should only read
LIMIT_S = 5.0  # of the reading of valid tokens, so that the next one is soon
_INSTRUMENT = re.compile(r"(?!t-[0-9a-f]{8}$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Token:
    """A token without its text.

    Attributes:
        id: names it, in lists and in the audit log.
        name: what it is for.
        scopes: of `SCOPES`.
        person: the name of its owner; "" if it has none.
        instrument: the id of its instrument; "" if it has none.
        created: when.
        expires: when it ends by itself; None if never.
        revoked: when it was revoked; None if it was not.
        last_used: when it was last shown, to the minute; None if never.
    """

    id: str
    name: str
    scopes: tuple[str, ...]
    person: str
    instrument: str
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    last_used: datetime | None


@dataclass(frozen=True)
class ValidToken:
    """What a server needs to check a token without the database.

    Attributes:
        sha256: of its text.
        id: of the token.
        scopes: of `SCOPES`.
        instrument: the id of its instrument; "" if it has none.
        expires: when it ends by itself; None if never.
        weight: of its instrument; 1 if it has none.
    """

    sha256: str
    id: str
    scopes: tuple[str, ...]
    instrument: str
    expires: datetime | None
    weight: float = 1.0


@dataclass(frozen=True)
class Instrument:
    """A microscope, or another machine, that asks for answers.

    Attributes:
        id: its name in requests and tokens, such as `STEM-1`.
        title: its name for people.
        created: when it was added.
        retired: since when none of its tokens is valid; None if it is in use.
        weight: its share of a busy service, in proportion to the weights of the others.
    """

    id: str
    title: str
    created: datetime
    retired: datetime | None
    weight: float = 1.0


def check_instrument_id(instrument_id: str) -> None:
    """Refuse what cannot be the id of an instrument; raises InvalidInput."""
    if not _INSTRUMENT.fullmatch(instrument_id):
        raise InvalidInput(
            f"{instrument_id[:80]!r} cannot be the id of an instrument",
            "1 to 64 letters, digits and . _ -, and not like the id of a token",
            "manybeam instrument add STEM-1 --title 'the big one'",
        )


class Instruments:
    """The instruments of one database.

    Args:
        database: where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, instrument_id: str, title: str = "", *, weight: float = 1.0, who: str = ""
    ) -> Instrument:
        """Return a new instrument; a retired one of that id is in use again, with new tokens.

        Args:
            instrument_id: 1 to 64 letters, digits and . _ -, as it stands in URLs.
            title: its name for people.
            weight: its share of a busy service.
            who: who adds it, for the audit log; the login of this process if left out.

        Raises:
            InvalidInput: the id, the title or the weight cannot be used.
            Conflict: it is there already.
        """
        check_instrument_id(instrument_id)
        title = _checked_name(title) if title else ""
        facts = {"title": title, "weight": _checked_weight(weight)}
        with self._database.writing() as connection:
            known = connection.execute(_instruments(instrument_id)).first()
            if known is not None and known.retired is None:
                raise Conflict(
                    f"there is an instrument {instrument_id!r} already",
                    f"it was added on {known.created:%Y-%m-%d}",
                    f"manybeam instrument token {instrument_id}",
                )
            row = {"id": instrument_id, "created": now(connection), **facts}
            insert_if_new(connection, InstrumentRow, row)
            own = InstrumentRow.id == instrument_id
            connection.execute(update(InstrumentRow).where(own).values(retired=None, **facts))
            details = {"weight": weight}
            who = who or whoami()
            append(connection, "instrument added", instrument_id, who=who, details=details)
            return _as_instrument(connection.execute(_instruments(instrument_id)).one())

    def list(self) -> Sequence[Instrument]:
        """Return all instruments by id; the retired ones too."""
        with self._database.reading() as connection:
            rows = connection.execute(_instruments().order_by(InstrumentRow.id))
            return [_as_instrument(row) for row in rows]

    def set_weight(self, instrument_id: str, weight: float, *, who: str = "") -> Instrument:
        """Change the share of an instrument; a running service knows it within 10 s.

        Args:
            instrument_id: id of the instrument.
            weight: its new weight.
            who: who changes it, for the audit log; the login of this process if left out.

        Raises:
            InvalidInput: the weight cannot be used.
            NotFound: there is no such instrument.
        """
        values = {"weight": _checked_weight(weight)}
        with self._database.writing() as connection:
            _known_instrument(connection, instrument_id)
            own = InstrumentRow.id == instrument_id
            connection.execute(update(InstrumentRow).where(own).values(**values))
            who = who or whoami()
            append(connection, "instrument weighted", instrument_id, who=who, details=values)
            return _as_instrument(connection.execute(_instruments(instrument_id)).one())

    def retire(self, instrument_id: str, *, who: str = "") -> Instrument:
        """Revoke all tokens of an instrument and let it have no others.

        Args:
            instrument_id: id of the instrument.
            who: who retires it, for the audit log; the login of this process if left out.

        Raises:
            NotFound: there is no such instrument.
        """
        with self._database.writing() as connection:
            if _known_instrument(connection, instrument_id).retired is None:
                at, own = now(connection), InstrumentRow.id == instrument_id
                connection.execute(update(InstrumentRow).where(own).values(retired=at))
                its = (TokenRow.instrument_id == instrument_id) & TokenRow.revoked.is_(None)
                connection.execute(update(TokenRow).where(its).values(revoked=at))
                who = who or whoami()
                append(connection, "instrument retired", instrument_id, who=who, details={})
            return _as_instrument(connection.execute(_instruments(instrument_id)).one())


class Tokens:
    """The tokens of one database.

    Args:
        database: where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        scopes: Iterable[str],
        *,
        person: str = "",
        instrument: str = "",
        lifetime: timedelta | None = None,
        who: str = "",
    ) -> tuple[str, Token]:
        """Return the text of a new token, which is not stored, and the token.

        Args:
            name: what it is for.
            scopes: what it may do, of `SCOPES`.
            person: whose it is, by name.
            instrument: which instrument's it is, by id.
            lifetime: after what time it expires; never if None.
            who: who makes it, for the audit log; the login of this process if left out.

        Raises:
            InvalidInput: an unknown scope, no name, or a lifetime that is over at once.
            NotFound: there is no such person or instrument.
        """
        text = f"mb-{secrets.token_urlsafe(32)}"
        if lifetime is not None and lifetime <= timedelta(0):
            raise InvalidInput(f"a lifetime of {lifetime}", "more than nothing", "")
        with self._database.writing() as connection:
            made = self._add(
                connection,
                text,
                name,
                scopes,
                person_id=_person_id(connection, person),
                instrument_id=_instrument_id(connection, instrument),
                lifetime=lifetime,
            )
            _note(connection, "token created", made, who)
        return text, made

    def register(self, text: str, place: str, scopes: Iterable[str]) -> Token:
        """Return the token of a file; the token that was there before is revoked.

        Args:
            text: of the token.
            place: of the file; the token is named after it.
            scopes: what it may do.
        """
        earlier = (TokenRow.name == place) & (TokenRow.sha256 != hash_of(text))
        with self._database.writing() as connection:
            still = earlier & TokenRow.revoked.is_(None)
            connection.execute(update(TokenRow).where(still).values(revoked=now(connection)))
            is_new = _find(connection, TokenRow.sha256 == hash_of(text)) is None
            made = self._add(connection, text, place, scopes)
            if is_new:
                _note(connection, "token created", made)
        return made

    def verify(self, text: str) -> Token | None:
        """Return the token of a text; None if there is none, it expired or is not valid."""
        own = (TokenRow.sha256 == hash_of(text)) & _is_valid()
        with self._database.reading() as connection:
            found, at = _find(connection, own), now(connection)
        if found is None or (found.expires and found.expires <= at):
            return None
        if found.last_used is None or (at - found.last_used).total_seconds() > SEEN_S:
            self.note_used([found.id])
        return found

    def valid(self) -> tuple[datetime, Sequence[ValidToken]]:
        """Return the time of the database and all tokens that are valid, the expired ones too.

        One small query, for a server that checks tokens in its memory.
        """
        wanted = select(
            TokenRow.sha256,
            TokenRow.id,
            TokenRow.scopes,
            TokenRow.instrument_id,
            TokenRow.expires,
            func.coalesce(InstrumentRow.weight, 1.0).label("weight"),
        ).select_from(_joined())
        with self._database.reading(LIMIT_S) as connection:
            rows = connection.execute(wanted.where(_is_valid()).order_by(TokenRow.id)).all()
            at = now(connection)
        return at, [
            ValidToken(
                row.sha256,
                row.id,
                tuple(row.scopes),
                row.instrument_id or "",
                row.expires,
                row.weight,
            )
            for row in rows
        ]

    def note_used(self, token_ids: Iterable[str]) -> None:
        """Record that tokens were shown now."""
        with self._database.writing() as connection:
            shown = TokenRow.id.in_(sorted(token_ids))
            connection.execute(update(TokenRow).where(shown).values(last_used=now(connection)))

    def revoke(self, token_id: str, *, who: str = "") -> Token:
        """Revoke a token; raises NotFound. Revoking it twice has no further effect.

        Args:
            token_id: id of the token.
            who: who revokes it, for the audit log; the login of this process if left out.
        """
        own = TokenRow.id == token_id
        with self._database.writing() as connection:
            still = own & TokenRow.revoked.is_(None)
            done = connection.execute(update(TokenRow).where(still).values(revoked=now(connection)))
            found = _find(connection, own)
            if found is None:
                raise NotFound(f"no token {token_id!r}", "", "manybeam instrument ls --tokens")
            if done.rowcount:
                _note(connection, "token revoked", found, who)
        return found

    def list(self) -> Sequence[Token]:
        """Return all tokens, the newest first; the expired and revoked ones too."""
        with self._database.reading() as connection:
            rows = connection.execute(_wanted().order_by(TokenRow.created.desc(), TokenRow.id))
            return [_as_token(row) for row in rows]

    def _add(
        self,
        connection: Connection,
        text: str,
        name: str,
        scopes: Iterable[str],
        *,
        person_id: int | None = None,
        instrument_id: str | None = None,
        lifetime: timedelta | None = None,
    ) -> Token:
        at, token_id = now(connection), f"t-{secrets.token_hex(4)}"
        row = {
            "id": token_id,
            "name": _checked_name(name),
            "sha256": hash_of(text),
            "scopes": _checked_scopes(scopes),
            "person_id": person_id,
            "instrument_id": instrument_id,
            "created": at,
            "expires": at + lifetime if lifetime else None,
        }
        insert_if_new(connection, TokenRow, row)
        own = _wanted().where(TokenRow.sha256 == row["sha256"])
        return _as_token(connection.execute(own).one())


def _note(connection: Connection, action: str, token: Token, who: str = "") -> None:
    """Record an action in its own transaction: both are done, or neither."""
    details = {
        "name": token.name,
        "scopes": list(token.scopes),
        "person": token.person,
        "instrument": token.instrument,
    }
    append(connection, action, token.id, who=who or whoami(), details=details)


def _wanted() -> Select[*tuple[Any, ...]]:
    columns = [one for one in TokenRow.__table__.columns if one.name != "sha256"]
    return select(*columns, PersonRow.name.label("person")).select_from(_joined())


def _joined() -> Join:
    """Return the tokens with their persons and instruments, where they have any."""
    return outerjoin(
        outerjoin(TokenRow, PersonRow, PersonRow.id == TokenRow.person_id),
        InstrumentRow,
        InstrumentRow.id == TokenRow.instrument_id,
    )


def _is_valid() -> ColumnElement[bool]:
    """Return the condition of a token that opens what it was made for until it expires."""
    return and_(
        TokenRow.revoked.is_(None), PersonRow.disabled.is_(None), InstrumentRow.retired.is_(None)
    )


def _instruments(instrument_id: str = "") -> Select[*tuple[Any, ...]]:
    wanted = select(*InstrumentRow.__table__.columns)
    return wanted.where(InstrumentRow.id == instrument_id) if instrument_id else wanted


def _as_instrument(row: Row[*tuple[Any, ...]]) -> Instrument:
    return Instrument(row.id, row.title, row.created, row.retired, row.weight)


def _known_instrument(connection: Connection, instrument_id: str) -> Row[*tuple[Any, ...]]:
    known = connection.execute(_instruments(instrument_id)).first()
    if known is None:
        raise NotFound(f"no instrument {instrument_id!r}", "", "manybeam instrument ls lists them")
    return known


def _find(connection: Connection, which: ColumnElement[bool]) -> Token | None:
    found = connection.execute(_wanted().where(which)).first()
    return None if found is None else _as_token(found)


def _as_token(row: Row[*tuple[Any, ...]]) -> Token:
    return Token(
        row.id,
        row.name,
        tuple(row.scopes),
        row.person or "",
        row.instrument_id or "",
        row.created,
        row.expires,
        row.revoked,
        row.last_used,
    )


def _person_id(connection: Connection, name: str) -> int | None:
    if not name:
        return None
    found = connection.execute(select(PersonRow.id).where(PersonRow.name == name)).scalar()
    if found is None:
        raise NotFound(f"no person {name!r}", "a token needs a known person", "")
    return found


def _instrument_id(connection: Connection, instrument: str) -> str | None:
    if not instrument:
        return None
    known = connection.execute(_instruments(instrument)).first()
    if known is None or known.retired is not None:
        raise NotFound(
            f"no instrument {instrument!r}" + (" is in use: it was retired" if known else ""),
            "a token belongs to a known one",
            f"manybeam instrument add {instrument}",
        )
    return instrument


def _checked_name(name: str) -> str:
    name = " ".join(name.split())
    if not 0 < len(name) <= MAX_NAME:
        raise InvalidInput(f"{name[:40]!r} names no token", f"1 to {MAX_NAME} characters", "")
    return name


def _checked_weight(weight: float) -> float:
    least, most = WEIGHTS
    if not least <= weight <= most:
        raise InvalidInput(
            f"a weight of {weight:g}",
            f"{least:g} to {most:g}; 1 is that of an instrument without one",
            "manybeam instrument weight STEM-1 2",
        )
    return weight


def _checked_scopes(scopes: Iterable[str]) -> list[str]:
    chosen = list(dict.fromkeys(scopes))
    strange = [one for one in chosen if one not in SCOPES]
    if strange or not chosen:
        raise InvalidInput(
            f"scopes {', '.join(strange) or 'none'} cannot be given", ", ".join(SCOPES), ""
        )
    return chosen


def hash_of(text: str) -> str:
    """Return what is stored of the text of a token."""
    return hashlib.sha256(text.encode()).hexdigest()
