"""Packages of a version to take away, made when asked for and forgotten when sent."""

import tempfile
import threading
from pathlib import Path
from typing import Literal, cast

from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from manybeam.errors import Busy, InvalidInput
from manybeam.web.plane import Plane

FORMS = {"bioimageio": "bioimage.io package", "onnx": "ONNX graph"}

_turn = threading.Lock()


def export_file(plane: Plane, ref: str, form: str) -> FileResponse:
    """Return a package of a version or member as a file.

    Raises:
        InvalidInput: no such form, or members that the form cannot hold.
        Busy: another package is being made; one takes all cores for some seconds.
        MissingPackage: what writes the form is not installed.
    """
    from manybeam.zoo.exchange import FORMS as ENDINGS
    from manybeam.zoo.exchange import export

    if form not in FORMS:
        raise InvalidInput(f"no form {form!r}", f"there are: {', '.join(FORMS)}", "")
    name = plane.shelf.look(ref).record.ref.replace("@", "-").replace("/", "-") + ENDINGS[form]
    if not _turn.acquire(timeout=30):
        raise Busy("another package is being made", "one at a time", "try again in a minute")
    folder = tempfile.TemporaryDirectory(prefix="manybeam-export-")
    try:
        asked = cast("Literal['bioimageio', 'onnx']", form)
        made = export(plane.zoo, ref, Path(folder.name) / name, form=asked)
    except BaseException:
        folder.cleanup()
        raise
    finally:
        _turn.release()
    return FileResponse(made, filename=name, background=BackgroundTask(folder.cleanup))
