"""An independent reader of instrument files, in an environment of its own.

    python3.11 -m venv files
    files/bin/pip install rosettasciio h5py mrcfile ncempy tifffile imagecodecs pillow
    files/bin/python tests/benchmarks/vendor_reader.py < names.txt > found.jsonl

Each line of the input names a file. Each line of the output is one file: its images, in pixels and
pm, by RosettaSciIO; where that fails, by the library of the format.
"""

import importlib
import json
import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

MODULES = {
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".emd": "emd",
    ".emi": "tia",
    ".jpeg": "image",
    ".jpg": "image",
    ".mrc": "mrc",
    ".png": "image",
    ".ser": "tia",
    ".tif": "tiff",
    ".tiff": "tiff",
}
PM = {"m": 1e12, "cm": 1e10, "mm": 1e9, "um": 1e6, "nm": 1e3, "a": 1e2, "pm": 1.0}


def pm(axis: dict[str, Any]) -> tuple[float | None, str]:
    """Return the step of an axis in pm if it is a length, and what it is else."""
    unit = str(axis.get("units") or "").strip("[]").replace("_", "")
    for one, other in (("µ", "u"), ("μ", "u"), ("Å", "A"), ("Å", "A")):
        unit = unit.replace(one, other)
    scale = float(axis.get("scale", 1))
    if unit.lower() in PM:
        step = abs(scale) * PM[unit.lower()]
        # TIA states patterns in 1/m, which its reader calls nm; no pixel is 1 m wide.
        return (None, "pattern") if step > 1e12 else (step if scale > 0 else None, "length")
    is_none = unit in ("", "px", "pixels", "undefined", "None", "<undefined>")
    return None, "none" if is_none else unit


def facts(array: Any, axes: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return what is compared; colours become their mean."""
    array = np.asarray(array)
    is_colour = array.dtype.names is not None
    kind = "colour" if is_colour else array.dtype.str.lstrip("<>|=")
    steps = [pm(axis) for axis in axes[-2:]]
    ends = [float(array[place].ravel()[0].real) for place in ((..., 0, 0), (..., 0, -1))
            if not is_colour and array.ndim > 1 and array.dtype.kind in "biuf"]  # fmt: skip
    return {
        "name": name,
        "shape": [side for side in array.shape if side > 1],
        "dtype": kind,
        "pm": [step for step, _ in steps],
        "doubted": [math.isclose(abs(float(axis.get("scale", 0))), 1) for axis in axes[-2:]],
        "kinds": [what for _, what in steps],
        "axes": [pm(axis)[1] for axis in axes] + [str(axis.get("name")) for axis in axes],
        "constant": bool(not is_colour and array.dtype.kind in "biuf" and np.ptp(array) == 0),
        "ends": ends,
    }


def by_rosettasciio(path: Path) -> list[dict[str, Any]]:
    """Return the images that RosettaSciIO finds."""
    reader = importlib.import_module(f"rsciio.{MODULES[path.suffix.lower()]}").file_reader
    found = reader(str(path))
    return [
        facts(one["data"], one["axes"], str(one["metadata"]["General"].get("title", "")))
        for one in ([found] if isinstance(found, dict) else found)
    ]


def by_its_library(path: Path) -> list[dict[str, Any]]:
    """Return the images by the library of the format, without pixel sizes."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return [facts(np.load(path), [], "")]
    if suffix in (".tif", ".tiff"):
        import tifffile

        with tifffile.TiffFile(path) as tif:
            return [facts(one.asarray(), [], one.name) for one in tif.series]
    if suffix == ".mrc":
        import mrcfile

        with mrcfile.open(path, permissive=True) as mrc:
            return [facts(mrc.data, [], "")]
    if suffix == ".emd":
        import h5py

        found: list[dict[str, Any]] = []

        def look(name: str, one: Any) -> None:
            if not isinstance(one, h5py.Dataset) or one.dtype.kind not in "biuf":
                return
            if name.startswith("Data/Image") and one.ndim == 3:
                found.append(facts(np.moveaxis(one[()], 2, 0), [], name))
            elif name.endswith("/data") and one.ndim > 1:
                found.append(facts(one[()], [], name))

        with h5py.File(path) as file:
            file.visititems(look)
        return found
    if suffix in (".ser", ".emi"):
        from ncempy.io import ser

        return [facts(ser.serReader(str(path))["data"], [], "")]
    from PIL import Image

    with Image.open(path) as image:
        return [facts(np.array(image.convert("L")), [], "")]


def main() -> None:
    """Read the files that are named on the standard input."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        row: dict[str, Any] = {"file": str(path), "images": [], "why": ""}
        for reader in (by_rosettasciio, by_its_library):
            try:
                row["images"] += reader(path)
            except Exception as error:  # noqa: BLE001 - of any library; the row tells it
                row["why"] += f"{type(error).__name__}: {error}"[:200] + "; "
            # RosettaSciIO turns images of Berkeley, and leaves frames of Velox out.
            if row["images"] and path.suffix != ".emd":
                break
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
