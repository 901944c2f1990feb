"""Velox and Berkeley EMD, both HDF5, read in a child process.

If a file is damaged, libhdf5 may crash or never return, and neither can be caught. So a child
process reads, and its end is reported as a fault of the file. The child writes to its standard
output: a line of JSON, then the array as .npy.

Axis letters: n frame, y row, x column.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from manybeam.data.io.formats import (
    FAULTS,
    RATIO,
    Raw,
    as_number,
    as_values,
    check_declared,
    detector_named,
    length_pm,
    square_pm,
)
from manybeam.data.io.sidecar import add_tree
from manybeam.errors import TooLarge

METADATA_BYTES = 10_000_000  # Velox reserves 60,000 for a frame
PATIENCE_S = 60.0  # for the smallest file, on a busy machine
BYTES_PER_S = 5e6  # of the slowest disk


def read_emd(path: Path) -> Raw:
    """Read an EMD file of either kind.

    Raises:
        ValueError: there is no image, the file is damaged, or reading crashed or did not end.
        TooLarge: more pixels than `max_frame_px`.
    """
    code = "from manybeam.data.io.emd import answer; answer()"
    try:
        child = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            capture_output=True,
            timeout=PATIENCE_S + path.stat().st_size / BYTES_PER_S,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError("reading does not end: the file is damaged") from error
    head, _, content = child.stdout.partition(b"\n")
    if child.returncode != 0 or not head:
        raise ValueError(f"HDF5 crashed (exit {child.returncode}): the file is damaged")
    fields = json.loads(head)
    if "too_large" in fields:
        raise TooLarge(*fields["too_large"])
    if "fault" in fields:
        raise ValueError(fields["fault"])
    return Raw(np.load(io.BytesIO(content), allow_pickle=False), **fields)


def answer() -> None:
    """Read the file of the command line and write the output for `read_emd`."""
    out = sys.stdout.buffer
    try:
        raw = _read_here(Path(sys.argv[1]))
    except TooLarge as error:
        out.write(json.dumps({"too_large": [error.what, error.why, error.hint]}).encode() + b"\n")
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, *FAULTS) as error:
        out.write(json.dumps({"fault": str(error) or type(error).__name__}).encode() + b"\n")
    else:
        fields = {key: value for key, value in vars(raw).items() if key != "array"}
        out.write(json.dumps(fields).encode() + b"\n")
        np.lib.format.write_array(out, np.ascontiguousarray(raw.array), allow_pickle=False)


def _read_here(path: Path) -> Raw:
    """Read an EMD file of either kind in this process."""
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        if "Data/Image" in file:
            return _read_velox(file)
        if "Data" in file and ("Data/Spectrum" in file or "Data/SpectrumStream" in file):
            raise ValueError("it is a Velox file with spectra only, without any image")
        found: list[Any] = []
        file.visititems(lambda _, group: found.append(group) if _is_berkeley(group) else None)
        images = [group for group in found if group["data"].ndim in (2, 3)]
        if not images:
            shapes = [group["data"].shape for group in found]
            raise ValueError(f"it has no image: EMD groups of shapes {shapes}")
        return _read_berkeley(file, max(images, key=lambda group: group["data"].size), len(images))


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
        raise ValueError("it has no image of real numbers (only complex ones, or none)")
    data, info, label = images[min(images)]
    _check_hdf(data)
    raw = Raw(np.moveaxis(data[()], 2, 0))  # Velox puts the frames last
    if len(images) > 1:
        raw.notes.append(f"{len(images)} images; {label or 'the first'} was taken")
    _velox_metadata(raw, info)
    return raw


def _velox_json(dataset: Any) -> dict[str, Any]:
    """Return the metadata of the first frame: JSON in a column of bytes, padded with zeros."""
    if dataset.ndim != 2 or dataset.shape[0] > METADATA_BYTES:
        raise ValueError(f"its metadata has shape {dataset.shape}: the file is damaged")
    text = np.asarray(dataset[:, 0]).tobytes().split(b"\0", 1)[0]
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("its metadata is not a tree of names and values")
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
    size = result.get("PixelSize") or {}
    edges = [
        length_pm(size.get(side), str(result.get(f"PixelUnit{axis}", "m")))
        for side, axis in (("height", "Y"), ("width", "X"))
    ]
    raw.pixel_size_pm = square_pm(edges[0], edges[1], raw.notes)
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


def _velox_field_of_view(raw: Raw, optics: Mapping[str, Any], scan: Mapping[str, Any]) -> None:
    """Add the pixel size that field of view, scanned area and scan size imply."""
    area, size = scan.get("ScanArea") or {}, scan.get("ScanSize") or {}
    field = as_number((optics.get("FullScanFieldOfView") or {}).get("x"))
    ends = [as_number(area.get(side)) for side in ("left", "right")]
    share = ends[1] - ends[0] if ends[0] is not None and ends[1] is not None else 1.0
    columns = as_number(size.get("width"))
    if field and columns and (edge_pm := length_pm(field * share / columns, "m")):
        raw.implied["the field of view"] = edge_pm


def _is_berkeley(group: Any) -> bool:
    return (
        hasattr(group, "keys")
        and as_number(group.attrs.get("emd_group_type")) == 1
        and hasattr(group.get("data"), "ndim")
    )


def _read_berkeley(file: Any, group: Any, image_count: int) -> Raw:
    """Read one EMD group: data, and a vector of positions for each axis."""
    data = group["data"]
    _check_hdf(data)
    units = [_text(group, f"dim{axis + 1}", "units") for axis in range(data.ndim)]
    edges = [length_pm(_step(group, axis), unit) for axis, unit in enumerate(units)]
    raw = Raw(data[()])
    raw.pixel_size_pm = square_pm(edges[-2], edges[-1], raw.notes)
    if image_count > 1:
        raw.notes.append(f"{image_count} images; the largest was taken: {group.name}")
    if "microscope" in file:
        _berkeley_microscope(raw, dict(file["microscope"].attrs))
    if "sample" in file:
        raw.material = _plain(file["sample"].attrs.get("material", ""))
    return raw


def _berkeley_microscope(raw: Raw, attributes: Mapping[str, Any]) -> None:
    """Map the attributes of the microscope, with the units of NAME_units if there are any.

    A voltage above 1000 without a unit is in volts: the format does not define it, and programs
    differ.
    """
    tree = {key: _plain(value) for key, value in attributes.items()}
    voltage = as_number(tree.get("voltage"))
    if voltage and voltage > 1e3 and not {"voltage_units", "voltage_unit"} & tree.keys():
        tree["voltage_unit"] = "V"
    add_tree(raw, tree, "group microscope")


def _step(group: Any, axis: int) -> float | None:
    vector = group.get(f"dim{axis + 1}")
    if vector is None or vector.ndim != 1 or len(vector) < 2:
        return None
    return float(vector[1] - vector[0])


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
