"""Downloads of a version: its model card, and packages, which are deleted after sending."""

import tempfile
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, cast

from fastapi import Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from manybeam.errors import Busy, InvalidInput
from manybeam.web.state import AppState
from manybeam.web.version_cache import CachedVersion
from manybeam.zoo.records import Ref

FORMS = {"bioimageio": "bioimage.io package", "onnx": "ONNX graph"}

CARDS = {"md": "text/markdown", "html": "text/html"}

_turn = threading.Lock()


@dataclass(frozen=True)
class _CardKey:
    """The inputs of a card as a key of the cache; `cached` is not part of the comparison."""

    zoo: str
    ref: str
    state: str
    note: str
    form: str
    cached: CachedVersion = field(compare=False)


def card_file(app_state: AppState, ref: str, form: str) -> Response:
    """Return the model card of a version as a file.

    Raises:
        InvalidInput: there is no such format.
    """
    from manybeam.zoo.reports.cards import note_for

    if form not in CARDS:
        raise InvalidInput(
            f"there is no card in the format {form!r}",
            f"formats: {', '.join(CARDS)}",
            "use one of these",
        )
    cached, state = (
        app_state.version_cache.look(ref),
        app_state.version_cache.entry(Ref.parse(ref)).state,
    )
    note = note_for(cached.record, app_state.library.folder, cached.matrix.conditions)
    text = _card_text(_CardKey(app_state.zoo.address, cached.record.ref, state, note, form, cached))
    # The card contains its style and picture, and no script.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    headers = {"content-security-policy": policy}
    if form == "md":
        name = cached.record.ref.replace("/", "-")
        headers["content-disposition"] = f'attachment; filename="{name}.{form}"'
    return Response(text, media_type=CARDS[form], headers=headers)


@lru_cache(maxsize=64)
def _card_text(card: _CardKey) -> str:
    """Write a card once for each state of its version, because its picture takes a second."""
    from manybeam.zoo.reports.cards import card_html, card_markdown

    write = card_html if card.form == "html" else card_markdown
    return write(card.cached.record, card.cached.matrix, note=card.note)


def export_file(app_state: AppState, ref: str, form: str) -> FileResponse:
    """Return a package of a version or member as a file.

    Raises:
        InvalidInput: there is no such format, or it cannot hold these members.
        Busy: another package is being made; each needs all cores for some seconds.
        MissingPackage: a package for this format is not installed.
    """
    from manybeam.zoo.exchange import FORMS as ENDINGS
    from manybeam.zoo.exchange import export

    if form not in FORMS:
        raise InvalidInput(
            f"there is no format {form!r}", f"formats: {', '.join(FORMS)}", "use one of these"
        )
    name = (
        app_state.version_cache.look(ref).record.ref.replace("@", "-").replace("/", "-")
        + ENDINGS[form]
    )
    # A request that waits here would block a thread that other requests need.
    if not _turn.acquire(blocking=False):
        raise Busy("another package is being made", "one at a time", "try again in a minute")
    folder = tempfile.TemporaryDirectory(prefix="manybeam-export-")
    try:
        asked = cast("Literal['bioimageio', 'onnx']", form)
        made = export(app_state.zoo, ref, Path(folder.name) / name, form=asked)
    except BaseException:
        folder.cleanup()
        raise
    finally:
        _turn.release()
    return FileResponse(made, filename=name, background=BackgroundTask(folder.cleanup))
