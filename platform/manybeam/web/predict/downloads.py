"""What can be downloaded of a result: the files that `manybeam predict` writes, and raw arrays."""

import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from manybeam.errors import NotFound
from manybeam.predictor.answer_files import atoms_csv, fill_group, picture
from manybeam.web.predict.asking import npy
from manybeam.web.predict.results import Result
from manybeam.web.predict.served_answer import ServedAnswer

ENSEMBLE = -1  # instead of the index of a member


def csv_file(result: Result) -> bytes:
    """Return the atoms as CSV, with the columns of `manybeam predict --atoms`."""
    return atoms_csv([ServedAnswer.of(result)])


def png_file(result: Result) -> bytes:
    """Return the picture of `manybeam predict --png`."""
    return picture(ServedAnswer.of(result))


def zarr_file(result: Result) -> bytes:
    """Return the Zarr group of `manybeam predict --zarr` as a zip, which zarr opens as it is."""
    import zarr

    # Not with zarr's own ZipStore: it leaves two files of one name where attributes are written.
    with tempfile.TemporaryDirectory(prefix="manybeam-zarr-") as folder:
        fill_group(zarr.create_group(folder), [ServedAnswer.of(result)])
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder).as_posix())
    return packed.getvalue()


def npy_file(result: Result) -> bytes:
    """Return the frame as .npy."""
    return npy(result.frame_yx)


def npz_file(result: Result) -> bytes:
    """Return the answer of the service, byte for byte."""
    return result.read("answer.npz").getvalue()


# End of the address -> what makes the file, and its media type.
FILES: dict[str, tuple[Callable[[Result], bytes], str]] = {
    "atoms.csv": (csv_file, "text/csv; charset=utf-8"),
    "answer.zarr.zip": (zarr_file, "application/zip"),
    "answer.npz": (npz_file, "application/zip"),
    "figure.png": (png_file, "image/png"),
    "frame.npy": (npy_file, "application/octet-stream"),
}


def atoms_f32(result: Result, member: int = ENSEMBLE) -> bytes:
    """Return atoms for the viewer, five little-endian float32 each.

    They are y, x, probability, position spread in pixels (NaN if unknown), class.

    Args:
        result: the result.
        member: index of a member; `ENSEMBLE` for the atoms of all together.

    Raises:
        NotFound: this member did not answer.
    """
    if member == ENSEMBLE:
        atoms = result.arrays("atoms")["atoms"]
        spread_n = np.hypot(atoms[:, 4], atoms[:, 5])
        kept = (atoms[:, 0], atoms[:, 1], atoms[:, 3], spread_n, atoms[:, 2])
    else:
        if member not in result.meta["members"]:
            raise NotFound(
                f"member {member:02d} did not answer", "other members did", "reload the page"
            )
        rows = result.arrays("members")["members"]
        rows = rows[rows[:, 0] == member]
        unknown_n = np.full(len(rows), np.nan)
        kept = (rows[:, 1], rows[:, 2], rows[:, 4], unknown_n, rows[:, 3])
    return np.column_stack(kept).astype("<f4").tobytes()
