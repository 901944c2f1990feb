"""The layout of a FrameSet in Zarr v3: three arrays in one group, and their documents.

`0` (n, y, x) frames, one a chunk · `truth` (row, 4) = frame, y, x, class · `pixel_size_pm` (n),
NaN if unknown. A set that was written at once has them in a folder below `made`.
Documents are made from the commit record and never read back. If a writer is killed, other readers
may see an older state; ours do not.
"""

import json
import math
from typing import Any

import zarr
from zarr.core.array import AsyncArray
from zarr.storage import StorePath

from manybeam.data.commits import Commit
from manybeam.data.ome import AXES, multiscales

LARGEST_CHUNK_PX = 512
ROWS_PER_CHUNK = 8192
MADE = "made"
ARRAYS = ("0", "truth", "pixel_size_pm")
PARTS = ("zarr.json", *ARRAYS, MADE)
DTYPES = ("float32", "uint8", "uint16")


def documents(commit: Commit, name: str) -> dict[str, bytes]:
    """Return the `zarr.json` of the group and its arrays, by key."""
    frames_array = {**_frames(commit), "dimension_names": list(AXES)}
    arrays = {"0": frames_array, "truth": _truth(commit), "pixel_size_pm": _sizes(commit)}
    found = {"zarr.json": _group(commit, name)}
    found |= {f"{_in_set(commit, part)}/zarr.json": array for part, array in arrays.items()}
    return {key: json.dumps(document, indent=1).encode() for key, document in found.items()}


def frames_array(place: StorePath, commit: Commit) -> "zarr.Array[Any]":
    """Return the frames of a commit as a Zarr array; nothing is read."""
    return _open(place / _in_set(commit, "0"), _frames(commit))


def truth_array(place: StorePath, commit: Commit) -> "zarr.Array[Any]":
    """Return the truth of a commit as a Zarr array; nothing is read."""
    return _open(place / _in_set(commit, "truth"), _truth(commit))


def sizes_array(place: StorePath, commit: Commit) -> "zarr.Array[Any]":
    """Return the pixel sizes of a commit as a Zarr array; nothing is read."""
    return _open(place / _in_set(commit, "pixel_size_pm"), _sizes(commit))


def chunk_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the shape of a chunk: the frame, or equal parts of at most 512 pixels a side.

    Example:
        >>> chunk_shape((256, 600))
        (256, 300)
    """
    rows, columns = (math.ceil(side / math.ceil(side / LARGEST_CHUNK_PX)) for side in shape)
    return rows, columns


def frame_keys(commit: Commit, start: int, stop: int) -> list[str]:
    """Return the keys of the chunks of frames [start, stop)."""
    chunk = chunk_shape(commit.shape)
    rows, columns = (math.ceil(side / edge) for side, edge in zip(commit.shape, chunk, strict=True))
    array = f"{_in_set(commit, '0')}/c"
    return [
        f"{array}/{n}/{y}/{x}"
        for n in range(start, stop)
        for y in range(rows)
        for x in range(columns)
    ]


def _in_set(commit: Commit, part: str) -> str:
    return f"{commit.folder}/{part}".lstrip("/")


def _open(place: StorePath, document: dict[str, Any]) -> "zarr.Array[Any]":
    return zarr.Array(AsyncArray.from_dict(place, document))


def _group(commit: Commit, name: str) -> dict[str, Any]:
    ours = {"format": commit.format, commit.kind: commit.imaging, "digest": commit.digest}
    ome = multiscales(name, commit.pixel_size_pm)
    ome["multiscales"][0]["datasets"][0]["path"] = _in_set(commit, "0")
    attributes = {"ome": ome, "manybeam": ours}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _frames(commit: Commit) -> dict[str, Any]:
    shape, chunk = [commit.count, *commit.shape], [1, *chunk_shape(commit.shape)]
    return _array(shape, chunk, commit.dtype)


def _truth(commit: Commit) -> dict[str, Any]:
    return _array([commit.truth_rows or 0, 4], [ROWS_PER_CHUNK, 4], "float32")


def _sizes(commit: Commit) -> dict[str, Any]:
    return _array([commit.count], [ROWS_PER_CHUNK], "float64")


def _array(shape: list[int], chunk: list[int], dtype: str) -> dict[str, Any]:
    """Return the document of an array; a lost chunk reads as NaN, if the type has NaN."""
    size = {"uint8": 1, "uint16": 2, "float32": 4, "float64": 8}[dtype]
    blosc = {"typesize": size, "cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if dtype.startswith("float") else 0,
        "codecs": [
            {"name": "bytes", **({"configuration": {"endian": "little"}} if size > 1 else {})},
            {"name": "blosc", "configuration": blosc},
            {"name": "crc32c"},
        ],
        "attributes": {},
        "storage_transformers": [],
    }
