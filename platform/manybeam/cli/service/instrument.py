"""`manybeam instrument`: the instruments that ask the service, and their tokens."""

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from manybeam.db.tokens import Instrument, Token, Tokens

SCOPES = "predict,select"
DAYS = 365

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Instruments that ask the service, and their tokens.\n\n"
    "Example: manybeam instrument add STEM-1",
)

InstrumentArgument = Annotated[str, typer.Argument(help="Id of an instrument, such as STEM-1.")]
ScopesOption = Annotated[
    str, typer.Option(help="What the token is for, with commas: predict, select, ingest.")
]
DaysOption = Annotated[
    int, typer.Option(min=1, max=3650, help="Days until the token expires by itself.")
]

_SHARE = "Its share of a busy service, 0.1 to 10, in proportion to the weights of the others."


@app.command()
def add(
    instrument: InstrumentArgument,
    *,
    title: Annotated[str, typer.Option(help="Its name for people.")] = "",
    weight: Annotated[float, typer.Option(help=_SHARE)] = 1.0,
    scopes: ScopesOption = SCOPES,
    days: DaysOption = DAYS,
    form: FormOption = Form.auto,
) -> None:
    """Add an instrument and make its first token. The text of the token is shown only now.

    Example: manybeam instrument add STEM-1 --title 'aberration-corrected STEM'
    """
    from manybeam.db.deployment import open_database
    from manybeam.db.tokens import Instruments

    chosen = _checked_scopes(scopes)
    Instruments(open_database()).add(instrument, title, weight=weight)
    _make_token(instrument, "", chosen, days, form)


@app.command()
def token(
    instrument: InstrumentArgument,
    *,
    name: Annotated[str, typer.Option(help="What it is for, such as the computer.")] = "",
    scopes: ScopesOption = SCOPES,
    days: DaysOption = DAYS,
    form: FormOption = Form.auto,
) -> None:
    """Make another token for an instrument, as to replace one before it expires.

    The token answers only for this instrument. Its text is shown only now; the database has its
    hash. On the computer of the instrument, set it as MANYBEAM_TOKEN.

    Example: manybeam instrument token STEM-1 --days 90 -o json
    """
    _make_token(instrument, name, _checked_scopes(scopes), days, form)


@app.command("ls")
def list_instruments(
    *,
    tokens: Annotated[bool, typer.Option("--tokens", help="List tokens, of programs too.")] = False,
    form: FormOption = Form.auto,
) -> None:
    """List the instruments with the number of their valid tokens, or the tokens.

    Example: manybeam instrument ls --tokens
    """
    from manybeam.db.deployment import open_database
    from manybeam.db.tokens import Instruments, Tokens

    of_database = Tokens(open_database())
    listed = of_database.list()
    states = _states(of_database, listed)
    if tokens:
        rows = [_token_row(one, states[one.id]) for one in listed]
        emit(rows, form, title="Tokens", empty="no token yet: manybeam instrument add STEM-1")
        return
    valid = Counter(one.instrument for one in listed if states[one.id] == "valid")
    used: dict[str, datetime] = {}
    for one in listed:
        if one.last_used:
            used[one.instrument] = max(one.last_used, used.get(one.instrument, one.last_used))
    rows = [
        {
            **_instrument_row(one),
            "valid_tokens": valid[one.id],
            "last_used": _text(used.get(one.id)),
            "added": _text(one.created),
        }
        for one in Instruments(open_database()).list()
    ]
    emit(rows, form, title="Instruments", empty="no instrument yet: manybeam instrument add STEM-1")


@app.command()
def weight(
    instrument: InstrumentArgument,
    share: Annotated[float, typer.Argument(metavar="WEIGHT", help=_SHARE)],
    *,
    form: FormOption = Form.auto,
) -> None:
    """Change the weight of an instrument. A running service with tokens uses it within 10 s.

    It counts where several instruments wait: one of weight 2 gets twice the time of one of weight
    1. What an instrument does not use is shared by the others.

    Example: manybeam instrument weight STEM-1 2
    """
    from manybeam.db.deployment import open_database
    from manybeam.db.tokens import Instruments

    changed = Instruments(open_database()).set_weight(instrument, share)
    emit([_instrument_row(changed)], form, title="Instruments")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Id of a token, or of an instrument to retire.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Retire the instrument.")] = False,
    form: FormOption = Form.auto,
) -> None:
    """Revoke a token; with the id of an instrument and --yes, all of its tokens.

    The service refuses it within 10 s. An instrument that was retired can be added again.

    Example: manybeam instrument revoke t-1f09ab3c
    """
    from manybeam.db.deployment import open_database
    from manybeam.db.tokens import Instruments, Tokens
    from manybeam.errors import InvalidInput

    database = open_database()
    known = {one.id for one in Instruments(database).list()}
    if name not in known:
        emit([_token_row(Tokens(database).revoke(name), "revoked")], form, title="Revoked")
        return
    if not yes:
        raise InvalidInput(
            f"{name!r} is an instrument",
            "all of its tokens would be revoked",
            f"manybeam instrument revoke {name} --yes; manybeam instrument ls --tokens lists them",
        )
    Instruments(database).retire(name)
    its = [one for one in Tokens(database).list() if one.instrument == name]
    emit([_token_row(one, "revoked") for one in its], form, title=f"Revoked of {name}")


def _make_token(instrument: str, name: str, scopes: tuple[str, ...], days: int, form: Form) -> None:
    """Make a token and print it with its text, which cannot be shown again."""
    from manybeam.db.deployment import open_database
    from manybeam.db.tokens import Tokens

    lifetime = timedelta(days=days)
    text, made = Tokens(open_database()).create(
        name or instrument, scopes, instrument=instrument, lifetime=lifetime
    )
    emit([{"token": text, **_token_row(made, "valid")}], form, title="Token")
    say("keep the text of the token: it is not shown again")


def _checked_scopes(text: str) -> tuple[str, ...]:
    """Return the scopes of an instrument; the others are for people and programs."""
    from manybeam.errors import InvalidInput

    allowed = ("predict", "select", "ingest")
    scopes = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    if strange := [one for one in scopes if one not in allowed]:
        raise InvalidInput(
            f"--scopes {', '.join(strange)!r}: an instrument cannot have this",
            f"allowed: {', '.join(allowed)}",
            f"manybeam instrument token STEM-1 --scopes {SCOPES}",
        )
    return scopes


def _states(tokens: "Tokens", listed: "Sequence[Token]") -> dict[str, str]:
    """Return whether each listed token is valid, expired or revoked, as the service sees it."""
    at, open_ones = tokens.valid()
    expired = {one.id: one.expires is not None and one.expires <= at for one in open_ones}
    words = {True: "expired", False: "valid"}
    return {one.id: words[expired[one.id]] if one.id in expired else "revoked" for one in listed}


def _instrument_row(one: "Instrument") -> dict[str, object]:
    state = "retired" if one.retired else "in use"
    return {"instrument": one.id, "title": one.title, "state": state, "weight": one.weight}


def _token_row(one: "Token", state: str) -> dict[str, object]:
    return {
        "id": one.id,
        "instrument": one.instrument,
        "name": one.name,
        "scopes": list(one.scopes),
        "state": state,
        "expires": _text(one.expires),
        "last_used": _text(one.last_used),
        "created": _text(one.created),
    }


def _text(moment: "datetime | None") -> str | None:
    return moment.isoformat() if moment else None
