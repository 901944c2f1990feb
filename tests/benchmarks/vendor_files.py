"""Files of instruments, read by us and by an independent reader: size, type, pixel size, counts.

    make bench-files                       # ../shared/data and the folder FILES, if it is set
    python tests/benchmarks/vendor_files.py --python files/bin/python --folder downloads

The other reader (`vendor_reader.py`, RosettaSciIO first) has an environment of its own, because its
licence is not ours; its Python is FILES_PYTHON. Good test files are those of RosettaSciIO.

A file agrees if both find an image of one shape, type and pixel size, with equal pixels at its
corners, or if we refuse what the other calls no frame: by its axes, its type or its shape, or a
frame without contrast. The table has a line for each file, mismatches first.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manybeam.data.io.reading import READERS, frames_in, read_frames
from manybeam.errors import ManybeamError

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
SAME = 0.005  # of two pixel sizes: some readers round them
NO_FRAME = ("ev", "1 /", "1/", "rad", "pattern", "energy", "wavelength", "ps", "nm^-1")


def ours(path: Path) -> dict[str, Any]:
    """Return what we read, before it is made a float32 frame, or why we do not."""
    warnings.simplefilter("ignore")
    try:
        read_frames(path)
        raw = READERS[path.suffix.lower()][1](path)
        array = frames_in(raw.array)
    except ManybeamError as error:
        return {"refused": error.why or error.what}
    corners = [float(array[..., 0, 0].ravel()[0]), float(array[..., 0, -1].ravel()[0])]
    return {
        "shape": [side for side in array.shape if side > 1],
        "dtype": array.dtype.str.lstrip("<>|="),
        "pm": raw.pixel_size_pm,
        "ends": corners,
        "notes": raw.notes,
    }


def disagreement(mine: Mapping[str, Any], theirs: Sequence[Mapping[str, Any]], why: str) -> str:
    """Return what differs; empty if nothing does."""
    if not theirs:
        return "" if "refused" in mine else f"the other does not read it: {why}"
    if "refused" in mine:
        known = [one for one in theirs if one["axes"]] or theirs
        frames = [one for one in known if _is_frame(one)]
        if "contrast" in mine["refused"] and any(one["constant"] for one in theirs):
            return ""
        return f"we refuse it: {mine['refused']}" if frames else ""
    faults = [_difference(mine, one) for one in theirs]
    return "" if "" in faults else min(faults, key=len)


def _is_frame(image: Mapping[str, Any]) -> bool:
    """Return whether the other reader calls it a frame or a stack with contrast."""
    axes = " ".join(map(str, image["axes"])).lower()
    return (
        len(image["shape"]) in (2, 3)
        and image["dtype"] != "colour"
        and image["dtype"][0] in "biuf"
        and not image["constant"]
        and len(set(image["kinds"])) < 2  # both along the sample, or both unknown
        and not any(word in axes for word in NO_FRAME)
    )


def _difference(mine: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if mine["shape"] != other["shape"]:
        return f"shape {mine['shape']} and {other['shape']}"
    is_colour = other["dtype"] == "colour" or mine["dtype"] == "f4" != other["dtype"]
    if mine["dtype"] != other["dtype"] and not is_colour:
        return f"type {mine['dtype']} and {other['dtype']}"
    if other["ends"] and not is_colour and not np.allclose(mine["ends"], other["ends"]):
        return f"corners {mine['ends']} and {other['ends']}"
    sizes = [size for size in other["pm"] if size]
    is_square = len(sizes) == 2 and abs(sizes[0] - sizes[1]) <= 0.01 * max(sizes)
    if not is_square or all(other["doubted"]):
        return ""  # we have more, or leave it open with a note
    if mine["pm"] is None or abs(mine["pm"] - sizes[0]) > SAME * sizes[0]:
        return f"pixel size {mine['pm']} and {sizes[0]} pm"
    return ""


def main() -> None:
    """Print the table; the exit code is 1 if a file disagrees."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=os.environ.get("FILES_PYTHON", ""))
    parser.add_argument("--folder", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("bench/files"))
    args = parser.parse_args()
    if not args.python:
        sys.exit(f"name the Python of the other reader: FILES_PYTHON, made as in\n{__doc__}")
    folders = [SHARED, *args.folder, *map(Path, filter(None, [os.environ.get("FILES")]))]
    files = sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix.lower() in READERS and path.is_file()
    )
    done = subprocess.run(
        [args.python, str(Path(__file__).with_name("vendor_reader.py"))],
        input="\n".join(map(str, files)),
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = []
    for path, line in zip(files, done.stdout.splitlines(), strict=True):
        found, mine = json.loads(line), ours(path)
        fault = disagreement(mine, found["images"], found["why"])
        rows.append({"file": path.name, "mismatch": fault, "ours": mine, "theirs": found})
    rows.sort(key=lambda row: not row["mismatch"])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "files.json").write_text(json.dumps(rows, indent=1))
    for row in rows:
        mine = row["ours"]
        what = mine.get("refused") or f"{mine['shape']} {mine['dtype']} {mine['pm']}"
        print(f"{row['file'][:50]:50} {row['mismatch'] or 'agrees':60} {str(what)[:90]}")
    wrong = sum(bool(row["mismatch"]) for row in rows)
    print(f"{len(rows)} files, {wrong} disagree")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
