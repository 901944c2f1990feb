"""EMD of Velox, of Berkeley and of the simulator Prismatic, all HDF5, read in a child process.

If a file is damaged, libhdf5 may crash or never return, and neither can be caught. So a child
process reads, within limits of processor time and memory, and its end is reported as a fault of the
file. The child writes to its standard output: a line of JSON, then the array as .npy.

Axis letters: n frame, y row, x column.
"""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from manybeam.data.io.formats import (
    Raw,
    as_values,
    check_axis,
    check_wavelengths,
    detector_named,
    frames_among,
    length_pm,
    pixel_pm,
)
from manybeam.data.io.limits import (
    BUSY,
    RATIO,
    FileFault,
    cause_of,
    check_declared,
    patience_s,
)
from manybeam.data.io.sidecar import add_tree
from manybeam.data.io.units import as_number
from manybeam.errors import TooLarge

# Names of axes: x, R_x, Rx, scan y, x axis, x [nm], width.
_X = re.compile(r"(?:^|[^a-z])(?:r?x|width|columns?)(?![a-z])", re.IGNORECASE)
_Y = re.compile(r"(?:^|[^a-z])(?:r?y|height|rows?)(?![a-z])", re.IGNORECASE)
_COLOURS = re.compile(r"colou?r|rgb|channel|sample", re.IGNORECASE)
METADATA_BYTES = 10_000_000  # Velox reserves 60,000 for a frame
MEMORY_BYTES = 2 << 30  # of the child, beside the image
# Each thread of numpy's OpenBLAS takes memory; those of 50 cores would exceed the limit.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class _Axis(NamedTuple):
    """An axis of an EMD group, its place in the array, and whether it has words for positions."""

    step: float | None
    unit: str
    name: str
    start: float
    place: int
    is_labelled: bool

    @property
    def letter(self) -> str:
        """Its name in short: x or y if it says so, else a dash."""
        return "x" if _X.search(self.name) else "y" if _Y.search(self.name) else "-"


def read_emd(path: Path) -> Raw:
    """Read an EMD file of any kind.

    Raises:
        FileFault: there is no image, the file is damaged, or reading crashed or did not end.
        TooLarge: more pixels than `max_frame_px`.
    """
    code = "from manybeam.data.io.emd import answer; answer()"
    seconds = patience_s(path)
    try:
        child = subprocess.run(
            [sys.executable, "-c", code, str(path), str(seconds)],
            capture_output=True,
            timeout=BUSY * seconds,
            env=os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FileFault("reading does not end: the file is damaged") from error
    head, _, content = child.stdout.partition(b"\n")
    if child.returncode == -signal.SIGXCPU:
        raise FileFault(f"reading does not end within {seconds:.0f} s: the file is damaged")
    if child.returncode < 0:
        raise FileFault("the library of HDF5 crashed: the file is damaged")
    if child.returncode or not head:
        raise FileFault(f"the process that reads HDF5 failed (exit code {child.returncode})")
    fields = json.loads(head)
    if "too_large" in fields:
        raise TooLarge(*fields["too_large"])
    if "fault" in fields:
        raise FileFault(fields["fault"])
    return Raw(np.load(io.BytesIO(content), allow_pickle=False), **fields)


def answer() -> None:
    """Read the file of the command line and write the output for `read_emd`."""
    out = sys.stdout.buffer
    _limit(resource.RLIMIT_CPU, max(1, round(float(sys.argv[2]))))
    _limit(resource.RLIMIT_DATA, MEMORY_BYTES)
    try:
        raw = read_here(Path(sys.argv[1]))
    except TooLarge as error:
        out.write(json.dumps({"too_large": [error.what, error.why, error.hint]}).encode() + b"\n")
    except Exception as error:  # noqa: BLE001 - what libhdf5 may raise is not known; the parent raises
        out.write(json.dumps({"fault": cause_of(error)}).encode() + b"\n")
    else:
        fields = {key: value for key, value in vars(raw).items() if key != "array"}
        out.write(json.dumps(fields).encode() + b"\n")
        np.lib.format.write_array(out, np.ascontiguousarray(raw.array), allow_pickle=False)


def _limit(kind: int, wanted: int) -> None:
    """Let this process use that much, within what it was given."""
    _, most = resource.getrlimit(kind)
    allowed = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(kind, (allowed, most))


def read_here(path: Path) -> Raw:
    """Read an EMD file of any kind in this process, which must be one that may be killed."""
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        if "Data/Image" in file:
            return _read_velox(file)
        if "Data" in file and ("Data/Spectrum" in file or "Data/SpectrumStream" in file):
            raise FileFault("it is a Velox file with spectra only, without any image")
        groups: list[Any] = []
        file.visititems(lambda _, one: groups.append(one) if _is_emd_group(one) else None)
        slices = [group for group in groups if hasattr(group.get("realslice"), "ndim")]
        if slices:
            return _read_prismatic(slices)
        found = [group for group in groups if hasattr(group.get("data"), "ndim")]
        images = [group for group in found if group["data"].ndim in (2, 3)]
        if not images:
            shapes = ", ".join(str(group["data"].shape) for group in found)
            raise FileFault("it has no image" + (f": data of shape {shapes}" if shapes else ""))
        return _read_berkeley(file, images)


def _read_velox(file: Any) -> Raw:
    """Read the image of a Velox file: HAADF first, then recorded images, by label."""
    labels = _velox_labels(file)
    images = {}
    for name, group in file["Data/Image"].items():
        if group["Data"].ndim == 3 and group["Data"].dtype.kind in "buif":
            info = _velox_json(group["Metadata"])
            detector = str(info.get("BinaryResult", {}).get("Detector", ""))
            label = labels.get(name, detector)
            is_recorded = group["Data"].dtype.kind != "f"  # computed images are floating-point
            rank = ("HAADF" not in (label, detector), not is_recorded, label, name)
            images[rank] = (group["Data"], info, label)
    if not images:
        raise FileFault("it has no image of real numbers (only complex ones, or none)")
    by_rank = [images[rank] for rank in sorted(images)]
    data, info, label = frames_among(by_rank, lambda image: pixel_pm(*_velox_axes(image[1]), []))[0]
    _check_hdf(data)
    raw = Raw(np.moveaxis(data[()], 2, 0))  # Velox puts the frames last
    if len(images) > 1:
        raw.notes.append(f"{len(images)} images; {label or 'the first'} was taken")
    _velox_metadata(raw, info)
    return raw


def _velox_json(dataset: Any) -> dict[str, Any]:
    """Return the metadata of the first frame: JSON in a column of bytes, padded with zeros."""
    if dataset.ndim != 2 or dataset.shape[0] > METADATA_BYTES:
        raise FileFault(f"its metadata has shape {dataset.shape}: the file is damaged")
    text = np.asarray(dataset[:, 0]).tobytes().split(b"\0", 1)[0]
    found = json.loads(text)
    if not isinstance(found, dict):
        raise FileFault("its metadata is not a tree of names and values")
    return found


def _velox_labels(file: Any) -> dict[str, str]:
    """Return the label of each image in Velox, by the key of the image."""
    labels = {}
    for dataset in file.get("Presentation/Displays/ImageDisplay", {}).values():
        shown = json.loads(dataset[0])
        key = str(shown.get("dataPath", "")).rpartition("/")[2]
        labels[key] = str(shown.get("display", {}).get("label", ""))
    return labels


def _velox_metadata(raw: Raw, info: Mapping[str, Any]) -> None:
    """Map the tree of Velox; zero means that the microscope did not report a value."""
    result, optics, scan = (info.get(key) or {} for key in ("BinaryResult", "Optics", "Scan"))
    raw.pixel_size_pm = pixel_pm(*_velox_axes(info), raw.notes)
    _velox_field_of_view(raw, optics, scan)
    detectors = [item for item in (info.get("Detectors") or {}).values() if isinstance(item, dict)]
    name = str(result.get("Detector", ""))
    mine = next((item for item in detectors if item.get("DetectorName") == name), {})
    angles = mine.get("CollectionAngleRange") or {}
    scans = mine.get("DetectorType") == "ScanningDetector"
    counts = info.get("CustomProperties", {}).get(f"Detectors[{name}].CountsToElectrons", {})
    found = {
        "optics.beam_kv": (optics.get("AccelerationVoltage"), 1e-3),
        "optics.convergence_mrad": (optics.get("BeamConvergence"), 1e3),
        # Overfocus is positive in files of Thermo Fisher, negative here.
        "optics.defocus_nm": (optics.get("Defocus"), -1e9),
        "optics.beam_current_pa": (optics.get("ScreenCurrent"), 1e12),
        "detector.detector_inner_mrad": (angles.get("begin"), 1e3),
        "detector.detector_outer_mrad": (angles.get("end"), 1e3),
        "scan.dwell_us": (scan.get("DwellTime"), 1e6),
    }
    raw.values = as_values(found)
    electrons = as_number(counts.get("value"))
    if electrons:
        raw.values["detector.gain"] = 1 / electrons
    raw.modality = (detector_named(name) or "stem") if scans else "tem"
    raw.material = str(info.get("Sample") or "")


def _velox_axes(info: Mapping[str, Any]) -> tuple[tuple[object, str], tuple[object, str]]:
    """Return (scale, unit) along y and x."""
    result = info.get("BinaryResult") or {}
    size = result.get("PixelSize") or {}
    y, x = (
        (size.get(side), str(result.get(f"PixelUnit{axis}", "m")))
        for side, axis in (("height", "Y"), ("width", "X"))
    )
    return y, x


def _velox_field_of_view(raw: Raw, optics: Mapping[str, Any], scan: Mapping[str, Any]) -> None:
    """Add the pixel size that field of view, scanned area and scan size imply."""
    area, size = scan.get("ScanArea") or {}, scan.get("ScanSize") or {}
    field = as_number((optics.get("FullScanFieldOfView") or {}).get("x"))
    ends = [as_number(area.get(side)) for side in ("left", "right")]
    share = ends[1] - ends[0] if ends[0] is not None and ends[1] is not None else 1.0
    columns = as_number(size.get("width"))
    if field and columns and (edge_pm := length_pm(field * share / columns, "m")):
        raw.implied["the field of view"] = edge_pm


def _is_emd_group(group: Any) -> bool:
    """Return whether a group has an array: by number in EMD 0.2, by word in 1.0 (py4DSTEM)."""
    kind = group.attrs.get("emd_group_type") if hasattr(group, "keys") else None
    return kind is not None and (as_number(kind) == 1 or _plain(kind) == "array")


def _read_berkeley(file: Any, images: Sequence[Any]) -> Raw:
    """Read the largest frame of some EMD groups: data, and a vector of positions for each axis."""
    usable = [group for group in images if _may_be_frame(group["data"])] or images
    group = frames_among(sorted(usable, key=_rank), _check_berkeley)[0]
    data = group["data"]
    _check_hdf(data)
    axes = _axes(group, data.ndim)
    raw = Raw(data[()].transpose([axis.place for axis in axes]))
    if not _states_order(group, axes):
        raw.notes.append("which of its axes is x is not stated: rows and columns are as stored")
    raw.pixel_size_pm = pixel_pm(axes[-2][:2], axes[-1][:2], raw.notes)
    if len(images) > 1:
        raw.notes.append(f"{len(images)} images; the largest frame was taken: {group.name}")
    if "microscope" in file:
        tree = {key: _plain(value) for key, value in file["microscope"].attrs.items()}
        add_tree(raw, tree, "group microscope")
    if "sample" in file:
        raw.material = _plain(file["sample"].attrs.get("material", ""))
    return raw


def _may_be_frame(data: Any) -> bool:
    """Return whether an array has real numbers in rows and columns."""
    return bool(data.dtype.kind != "c") and sum(side > 1 for side in data.shape) > 1


def _rank(group: Any) -> tuple[bool, int, int]:
    """Return what is smallest for the largest frames, of two alike for the longest stack."""
    data = group["data"]
    rows, columns = (data.shape[axis.place] for axis in _axes(group, data.ndim)[-2:])
    return columns <= 4, -rows * columns, -data.size  # colours, on a short axis, are for display


def _check_berkeley(group: Any) -> None:
    """Refuse a group of spectra, patterns or objects, by its type and by its axes."""
    data = group["data"]
    if data.dtype.kind not in "biufc":
        raise FileFault(f"its data are not numbers but {data.dtype}: export the image anew")
    axes = _axes(group, data.ndim)
    for number, axis in enumerate(axes):
        check_axis(axis.unit, axis.name, is_of_stack=number < data.ndim - 2)
    check_wavelengths([(*axis[:2], axis.start, data.shape[axis.place]) for axis in axes])


def _read_prismatic(groups: list[Any]) -> Raw:
    """Read an image of Prismatic, or of py4DSTEM before EMD 1.0, at the greatest depth.

    What has a third axis is no frame: rings of a detector, a potential, or both centres of mass.
    """
    images = sorted((one for one in groups if one["realslice"].ndim == 2), key=lambda one: one.name)
    if not images:
        names = ", ".join(one.name.rpartition("/")[2] for one in groups)
        raise FileFault(f"it has no image of an annular detector, only {names}")
    rings = [one for one in images if "annular" in one.name]
    group = (rings or images)[-1]
    data = group["realslice"]
    _check_hdf(data)
    axes = _axes(group, 2)
    raw = Raw(data[()].transpose([axis.place for axis in axes]))
    for axis in axes:
        check_axis(axis.unit, axis.name)
    raw.pixel_size_pm = pixel_pm(axes[0][:2], axes[1][:2], raw.notes)
    raw.modality = "adf" if rings else "unknown"
    if len(groups) > 1:
        raw.notes.append(f"{len(groups)} results; {group.name.rpartition('/')[2]} was taken")
    return raw


def _axes(group: Any, count: int) -> list[_Axis]:
    """Return the axes of a group in our order: frames, rows (y), columns (x).

    HyperSpy writes all axes in reverse. Of others the names of the axes say which is x, but for
    py4DSTEM, where x is along the rows. Words for positions, on its last axis, name frames.
    """
    first = 0 if "dim0" in group else 1
    axes = []
    for place in range(count):
        dim = f"dim{first + place}"
        vector = group.get(dim)
        start, step = _positions(vector)
        unit, name = _text(group, dim, "units"), _text(group, dim, "name")
        is_labelled = hasattr(vector, "dtype") and vector.dtype.kind in "SUO"
        axes.append(_Axis(step, unit, name, start, place, is_labelled))
    letters = "".join(axis.letter for axis in axes)
    is_last_of_frames = letters.startswith("yx") and not _COLOURS.search(axes[-1].name)
    if _is_hyperspy(group) or (letters.startswith("xy") and not _is_py4dstem(group)):
        return axes[::-1]  # (x, y) or (x, y, frames)
    if count == 3 and (axes[2].is_labelled or is_last_of_frames):
        return [axes[2], axes[0], axes[1]]
    if letters.endswith("xy") and not _is_py4dstem(group):
        return [*axes[:-2], axes[-1], axes[-2]]
    return axes


def _is_hyperspy(group: Any) -> bool:
    """Return whether HyperSpy (RosettaSciIO) wrote a group."""
    version = [_plain(group.file.attrs.get(f"version_{part}", "")) for part in ("major", "minor")]
    return version == ["0", "2"] and group.name.startswith("/signals/")


def _is_py4dstem(group: Any) -> bool:
    """Return whether py4DSTEM wrote a group: in EMD 1.0, which counts axes from 0, or before."""
    is_simulated = group.name.startswith("/4DSTEM_simulation/")  # by Prismatic
    return "dim0" in group or ("realslice" in group and not is_simulated)


def _states_order(group: Any, axes: Sequence[_Axis]) -> bool:
    """Return whether the writer of a group, or a name, says which axis is x."""
    is_named = any(axis.letter != "-" for axis in axes[-2:])
    return is_named or _is_hyperspy(group) or _is_py4dstem(group)


def _positions(vector: Any) -> tuple[float, float | None]:
    """Return start and step of a vector of positions; the step is None where it is none."""
    if vector is None or vector.ndim != 1 or len(vector) < 2 or vector.dtype.kind not in "iuf":
        return 0.0, None
    first, last = float(vector[0]), float(vector[len(vector) - 1])
    # Over all, because float32 rounds each.
    return first, abs(last - first) / (len(vector) - 1)


def _text(group: Any, name: str, attribute: str) -> str:
    return _plain(group[name].attrs.get(attribute, "")) if name in group else ""


def _plain(value: Any) -> str:
    """Return an HDF5 attribute as text: programs write bytes, strings or arrays of one."""
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _check_hdf(data: Any) -> None:
    """Refuse a dataset with too few stored bytes for its shape; only chunks are compressed."""
    ratio = 1 if data.chunks is None else RATIO
    check_declared(data.shape, data.dtype.itemsize, data.id.get_storage_size(), ratio)
    _limit(resource.RLIMIT_DATA, MEMORY_BYTES + 3 * data.size * data.dtype.itemsize)
