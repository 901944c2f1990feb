"""Instrument formats: DigitalMicrograph, Velox and Berkeley EMD, TIA (ser and emi).

The binary ones are read here, byte by byte against the size of the file, because a header that lies
must end in a sentence and not in a full memory. Each reader returns a `formats.Raw`.

Axis letters: n frame, y row, x column.
"""

import glob
import json
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from manybeam.data.dmtags import Block, read_tags
from manybeam.data.formats import (
    RATIO,
    Array,
    Raw,
    as_number,
    as_values,
    check_claim,
    grey,
    length_pm,
    square_pm,
)

# DigitalMicrograph's image types -> NumPy; 23 is colour, packed; 3 and 13 are complex.
_DM_TYPES = {1: "i2", 2: "f4", 6: "u1", 7: "i4", 9: "i1", 10: "u2", 11: "u4", 12: "f8", 14: "u1"}
_DM_COLOUR = 23
METADATA_BYTES = 10_000_000  # Velox reserves 60,000 for a frame


def read_dm(path: Path) -> Raw:
    """Read the recorded image of a DM3 or DM4 file: the largest that is no thumbnail."""
    tags = read_tags(path)
    entries = [entry for entry in tags.get("ImageList", {}).values() if "ImageData" in entry]
    if len(entries) > 1 and entries[0]["ImageData"].get("DataType") == _DM_COLOUR:
        entries = entries[1:]  # the thumbnail
    usable = [entry for entry in entries if _dm_is_image(entry["ImageData"])]
    if not usable:
        raise ValueError("it holds no image of real numbers (tags, spectra or a transform only)")
    entry = max(usable, key=lambda entry: entry["ImageData"]["Data"].count)
    data = entry["ImageData"]
    sides = [int(side) for side in data["Dimensions"].values()]
    dimensions = list(data.get("Calibrations", {}).get("Dimension", {}).values())
    axes = [(axis.get("Scale"), str(axis.get("Units", ""))) for axis in dimensions]
    edges = [length_pm(*axis) for axis in axes]  # x, y, then frame
    raw = Raw(_dm_array(path, data, sides[::-1]))
    if data["DataType"] == _DM_COLOUR:
        raw.array = grey(raw.array, raw.notes)
    if len(usable) > 1:
        raw.notes.append(f"{len(usable)} images; the largest was taken: {entry.get('Name', '')}")
    raw.pixel_size_pm = square_pm(edges[1], edges[0], raw.notes) if len(edges) > 1 else None
    _dm_metadata(raw, entry.get("ImageTags", {}))
    return raw


def _dm_is_image(data: Mapping[str, Any]) -> bool:
    known = data.get("DataType") in _DM_TYPES or data.get("DataType") == _DM_COLOUR
    sides = list(data.get("Dimensions", {}).values())
    return known and isinstance(data.get("Data"), Block) and len(sides) > 1 and min(sides[:2]) > 1


def _dm_array(path: Path, data: Mapping[str, Any], shape: list[int]) -> Array:
    """Return the pixels of one image; colours get a last axis of blue, green, red, opacity."""
    block: Block = data["Data"]
    colour = data["DataType"] == _DM_COLOUR
    dtype = np.dtype("u1" if colour else _DM_TYPES[data["DataType"]]).newbyteorder(block.order)
    if colour:
        shape = [*shape, 4]
    check_claim(tuple(shape[:-1] if colour else shape), dtype.itemsize, block.byte_count)
    pixels = np.fromfile(path, dtype, count=int(np.prod(shape)), offset=block.offset)
    return pixels.reshape(shape)[..., [2, 1, 0, 3]] if colour else pixels.reshape(shape)


def _dm_metadata(raw: Raw, tags: Mapping[str, Any]) -> None:
    """Map Gatan's tags; zero means that nobody told the program."""
    scope, scan = _deep(tags, "Microscope Info"), _deep(tags, "DigiScan")
    spectrum = _deep(tags, "Experimental Conditions") or _deep(tags, "EELS")
    found = {
        "optics.beam_kv": (scope.get("Voltage"), 1e-3),
        "optics.beam_current_pa": (scope.get("Probe Current (nA)"), 1e3),
        "optics.cs_um": (scope.get("Cs(mm)"), 1e3),
        "optics.convergence_mrad": (spectrum.get("Convergence semi-angle (mrad)"), 1.0),
        "scan.dwell_us": (scan.get("Sample Time"), 1.0),
    }
    raw.values = as_values(found)
    mode = str(scope.get("Illumination Mode", ""))
    raw.modality = mode or "unknown"
    if scan and not mode.upper().startswith("SEM"):
        channel = _deep(tags, "QuickSaved").get("original name")
        raw.modality = _detector(str(channel or _deep(tags, "source").get("source name"))) or "stem"


def _deep(tags: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the first group of that name, at any depth: programs nest them differently."""
    for key, value in tags.items():
        if isinstance(value, Mapping):
            inner = value if key == name else _deep(value, name)
            if inner:
                return inner
    return {}


def _detector(name: str) -> str:
    """Return the annular detector a channel's name speaks of; empty if none."""
    match = re.search(r"HAADF|MAADF|LAADF|ADF|ABF|DF\d?|BF", name, re.IGNORECASE)
    return match[0].lower() if match else ""


def read_emd(path: Path) -> Raw:
    """Read an HDF5 file of either kind called EMD."""
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        if "Data/Image" in file:
            return _read_velox(file)
        if "Data" in file and ("Data/Spectrum" in file or "Data/SpectrumStream" in file):
            raise ValueError("it is a Velox file of spectra, without any image")
        found: list[Any] = []
        file.visititems(lambda _, group: found.append(group) if _is_berkeley(group) else None)
        images = [group for group in found if group["data"].ndim in (2, 3)]
        if not images:
            shapes = [group["data"].shape for group in found]
            raise ValueError(f"it holds no image: EMD groups of shapes {shapes}")
        return _read_berkeley(file, max(images, key=lambda group: group["data"].size), len(images))


def _read_velox(file: Any) -> Raw:
    """Read the image of a Velox file: HAADF first, then what a detector recorded, by its label."""
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
        raise ValueError("it holds no image of real numbers (complex or none at all)")
    data, info, label = images[min(images)]
    _check_hdf(data)
    raw = Raw(np.moveaxis(data[()], 2, 0))  # Velox puts the frames last
    if len(images) > 1:
        raw.notes.append(f"{len(images)} images; {label or 'the first'} was taken")
    _velox_metadata(raw, info)
    return raw


def _velox_json(dataset: Any) -> dict[str, Any]:
    """Return the metadata of the first frame: JSON in a column of bytes, filled up with zeros."""
    if dataset.ndim != 2 or dataset.shape[0] > METADATA_BYTES:
        raise ValueError(f"its metadata has shape {dataset.shape}: damaged")
    text = np.asarray(dataset[:, 0]).tobytes().split(b"\0", 1)[0]
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("its metadata is not a tree of names and values")
    return found


def _velox_labels(file: Any) -> dict[str, str]:
    """Return what Velox calls each image on screen, by the image's key; none if it does not say."""
    labels = {}
    for dataset in file.get("Presentation/Displays/ImageDisplay", {}).values():
        shown = json.loads(dataset[0])
        key = str(shown.get("dataPath", "")).rpartition("/")[2]
        labels[key] = str(shown.get("display", {}).get("label", ""))
    return labels


def _velox_metadata(raw: Raw, info: Mapping[str, Any]) -> None:
    """Map Velox's tree; zero means that the microscope did not report it."""
    result, optics, scan = (info.get(key) or {} for key in ("BinaryResult", "Optics", "Scan"))
    size = result.get("PixelSize") or {}
    edges = [
        length_pm(size.get(side), str(result.get(f"PixelUnit{axis}", "m")))
        for side, axis in (("height", "Y"), ("width", "X"))
    ]
    raw.pixel_size_pm = square_pm(edges[0], edges[1], raw.notes)
    detectors = [item for item in (info.get("Detectors") or {}).values() if isinstance(item, dict)]
    name = str(result.get("Detector", ""))
    mine = next((item for item in detectors if item.get("DetectorName") == name), {})
    angles = mine.get("CollectionAngleRange") or {}
    scans = mine.get("DetectorType") == "ScanningDetector"
    counts = info.get("CustomProperties", {}).get(f"Detectors[{name}].CountsToElectrons", {})
    found = {
        "optics.beam_kv": (optics.get("AccelerationVoltage"), 1e-3),
        "optics.convergence_mrad": (optics.get("BeamConvergence"), 1e3),
        # Thermo Fisher counts overfocus positive, we underfocus.
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
    raw.modality = (_detector(name) or "stem") if scans else "tem"
    raw.material = str(info.get("Sample") or "")


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
        voltage = as_number(file["microscope"].attrs.get("voltage"))
        if voltage:
            raw.values["optics.beam_kv"] = voltage / 1e3 if voltage > 1e3 else voltage
    if "sample" in file:
        raw.material = _plain(file["sample"].attrs.get("material", ""))
    return raw


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
    """Refuse a dataset whose stored bytes cannot make what it declares; only chunks are packed."""
    ratio = 1 if data.chunks is None else RATIO
    check_claim(data.shape, data.dtype.itemsize, data.id.get_storage_size(), ratio)


_SER_TYPES = ["", "u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8", "c8", "c16"]


def read_ser(path: Path) -> Raw:
    """Read a TIA series, and the experiment file (.emi) beside it where there is one."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        raw = _ser_images(memory)
    emi = path.with_name(re.sub(r"_\d+$", "", path.stem) + ".emi")
    if emi.is_file():
        _emi_metadata(raw, emi)
    return raw


def read_emi(path: Path) -> Raw:
    """Read the frames that belong to a TIA experiment: they lie in the .ser files beside it."""
    with path.open("rb") as file:
        if file.read(2) != b"JK":
            raise ValueError("it does not start as a TIA experiment does")
    _emi_text(path)
    beside = sorted(path.parent.glob(f"{glob.escape(path.stem)}_*.ser"))
    if not beside:
        raise ValueError(f"its frames belong into {path.stem}_1.ser beside it, which is missing")
    raw = read_ser(beside[0])
    if len(beside) > 1:
        raw.notes.append(f"{len(beside)} series beside it; {beside[0].name} was taken")
    return raw


def _ser_images(memory: mmap.mmap) -> Raw:
    """Return every image of a series, which must be alike."""
    order, series, version, kind = struct.unpack_from("<3Hi", memory)
    if (order, series) != (0x4949, 0x0197) or version not in (0x0210, 0x0220):
        raise ValueError("it does not start as a TIA series does")
    if kind != 0x4122:
        raise ValueError("it holds spectra or profiles, no images")
    wide = version == 0x0220
    count = struct.unpack_from("<i", memory, 18)[0]
    table = struct.unpack_from("<q" if wide else "<i", memory, 22)[0]
    if not 0 < count <= len(memory) // 58 or table < 0:
        raise ValueError(f"it declares {count} images in {len(memory)} bytes: cut short or empty")
    offsets = struct.unpack_from(f"<{count}{'q' if wide else 'i'}", memory, table)
    images = [_ser_image(memory, offset) for offset in offsets]
    if len({image.array.shape for image in images}) > 1:
        raise ValueError("its images differ in shape: export them one by one")
    raw = images[0]
    raw.array = np.stack([image.array for image in images])
    return raw


def _ser_image(memory: mmap.mmap, offset: int) -> Raw:
    """Return one image, top row first: TIA stores the bottom row first."""
    _, x_m, _, _, y_m, _ = struct.unpack_from("<ddiddi", memory, offset)
    code, columns, rows = struct.unpack_from("<hii", memory, offset + 40)
    if not 0 < code < len(_SER_TYPES):
        raise ValueError(f"data type {code} in its header is not one of 1 to {len(_SER_TYPES) - 1}")
    dtype = np.dtype(f"<{_SER_TYPES[code]}")
    check_claim((rows, columns), dtype.itemsize, len(memory) - offset - 50)
    start = offset + 50
    pixels = np.frombuffer(memory[start : start + rows * columns * dtype.itemsize], dtype)
    raw = Raw(pixels.reshape(rows, columns)[::-1])
    raw.pixel_size_pm = square_pm(length_pm(abs(y_m), "m"), length_pm(abs(x_m), "m"), raw.notes)
    return raw


def _emi_text(path: Path) -> str:
    """Return the description in a .emi: XML amid bytes that nobody has described."""
    content = path.read_bytes()
    start, stop = content.find(b"<ObjectInfo>"), content.rfind(b"</ObjectInfo>")
    if start < 0 or stop < start:
        raise ValueError("its description is missing: cut short; the .ser beside it may be whole")
    return content[start:stop].decode("utf-8", "replace")


def _emi_metadata(raw: Raw, path: Path) -> None:
    """Map TIA's labelled values; fields are matched by text, as no XML parser is safe here."""
    try:
        text = _emi_text(path)
    except ValueError as error:
        raw.notes.append(f"{path.name} was passed over: {error}")
        return
    pairs = re.findall(r"<Label>([^<]{1,80})</Label><Value>([^<]{0,200})</Value>", text)
    labels = {label.strip(): value.strip() for label, value in pairs}
    mode = labels.get("Mode", "")
    dwell = re.search(r"<DwellTimePath>([^<]+)</DwellTimePath>", text)
    found = {
        "optics.beam_kv": (labels.get("High tension"), 1.0),
        "optics.convergence_mrad": (labels.get("Convergence angle"), 1.0),
        # Thermo Fisher counts overfocus positive, we underfocus.
        "optics.defocus_nm": (labels.get("Defocus"), -1e3),
        "scan.dwell_us": (dwell[1] if dwell and "STEM" in mode else None, 1e6),
    }
    raw.values = as_values(found)
    raw.modality = "stem" if "STEM" in mode else "tem" if "TEM" in mode else "unknown"
