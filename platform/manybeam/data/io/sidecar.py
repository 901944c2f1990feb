"""A JSON file beside a frame (FRAME.json beside FRAME.npy) with settings of the microscope.

The trees of such files differ. So names are searched at any depth, and units decide: "voltage":
"60 kV" and "EHT": 60000 mean the same. If a name occurs twice with two values, a note says so.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from manybeam.data.io.formats import (
    ONE_IS_UNKNOWN,
    Raw,
    check_axis,
    detector_named,
    is_one,
    is_reciprocal,
    pixel_pm,
    square_pm,
)
from manybeam.data.io.limits import FileFault
from manybeam.data.io.units import FIELD_OF_VIEW, OURS, as_number, factor, measure

MOST_BYTES = 1_000_000
PIXEL_SIZE = "scan.pixel_size_pm"

# Name without case, sign and blank -> (our field, the unit of a bare number, sign).
NAMES: dict[str, tuple[str, str, float]] = {
    **dict.fromkeys(
        ("voltage", "beamenergy", "acceleratingvoltage", "accelerationvoltage", "hightension"),
        ("optics.beam_kv", "kV", 1),
    ),
    **dict.fromkeys(("eht", "ht"), ("optics.beam_kv", "V", 1)),
    **dict.fromkeys(
        ("convergenceangle", "convergencesemiangle", "semiconvergenceangle", "beamconvergence",
         "probesemiangle", "convergence"),
        ("optics.convergence_mrad", "mrad", 1),
    ),
    **dict.fromkeys(("probecurrent", "beamcurrent"), ("optics.beam_current_pa", "pA", 1)),
    "defocus": ("optics.defocus_nm", "nm", 1),
    "c10": ("optics.defocus_nm", "m", -1),  # Nion: overfocus is positive
    **dict.fromkeys(("cs", "c30", "sphericalaberration"), ("optics.cs_um", "m", 1)),
    "c12": ("optics.astigmatism_nm", "m", 1),
    "c21": ("optics.coma_nm", "m", 1),
    "c23": ("optics.trefoil_nm", "m", 1),
    **dict.fromkeys(("detectorinner", "innerangle", "haadfinnerangle"),
                    ("detector.detector_inner_mrad", "mrad", 1)),
    **dict.fromkeys(("detectorouter", "outerangle", "haadfouterangle"),
                    ("detector.detector_outer_mrad", "mrad", 1)),
    **dict.fromkeys(("dwell", "dwelltime", "pixeltime"), ("scan.dwell_us", "us", 1)),
    **dict.fromkeys(("dose", "electrondose"), ("dose_e_per_a2", "e/A^2", 1)),
    **dict.fromkeys(("pixelsize", "pixelsizex"), (PIXEL_SIZE, "", 1)),
    "pixelsizey": (PIXEL_SIZE + " y", "", 1),
    **dict.fromkeys(("fov", "fieldofview", "fovx", "fieldofviewx"), (FIELD_OF_VIEW, "", 1)),
    **dict.fromkeys(("fovy", "fieldofviewy"), (FIELD_OF_VIEW + " y", "", 1)),
}  # fmt: skip
# The tree of HyperSpy has no units. They are in its manual, and two differ from those of others.
_HYPERSPY = "Acquisition_instrument"
_HYPERSPY_UNITS = {"beam_current": "nA", "dwell_time": "s"}
# Bare numbers beyond these are in SI units: no microscope has 1 MV, 1 ns, 1 aA, a detector at
# 0.2 mrad, or a beam that converges by 100 mrad. By unit, or by the quantity if it differs.
_BARE: dict[str, tuple[Callable[[float], bool], str]] = {
    "kV": (lambda number: number > 1000, "V"),
    "mrad": (lambda number: number < 0.2, "rad"),
    "optics.convergence_mrad": (lambda number: number < 0.1, "rad"),
    "us": (lambda number: number < 1e-3, "s"),
    "pA": (lambda number: number < 1e-6, "A"),
    "nm": (lambda number: number < 1e-4, "m"),
}
# Groups of calibrated axes, as HyperSpy and Nion Swift write them: rows and columns last.
_AXES = ("axes", "spatialcalibrations", "dimensionalcalibrations")
_CALIBRATIONS = ("calibration", "spatialcalibration", "pixelcalibration")  # of both axes
_KINDS = ("experimenttype", "modality", "detector", "detectorname")  # names of the kind of imaging
_MEASURED = re.compile(r"^\s*[-+0-9.eE]+\s*")
_SUFFIX = re.compile(
    r"[_ (\[]+(kv|v|kev|mrad|rad|pa|na|nm|pm|um|[µμ]m|us|ms|ns|s|m|a|å)[)\]]?$", re.I
)


def add_sidecar(raw: Raw, path: Path) -> None:
    """Add the values of FRAME.json; those of the file of the frame come first, with a note.

    If the sidecar is not JSON, it is ignored with a note, because the frame is whole without it.
    """
    beside = path.with_suffix(".json")
    if beside == path or not beside.is_file():
        return
    try:
        if beside.stat().st_size > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES} bytes")
        tree = json.loads(beside.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raw.notes.append(f"{beside.name} was ignored: {error}")
        return
    add_tree(raw, tree, beside.name)


def add_tree(raw: Raw, tree: object, source: str) -> None:
    """Add the values of a tree of names; notes on contradictions name the `source`.

    Raises:
        FileFault: the axes at the top of the tree are not those of a frame; further down they may
            be of something else.
    """
    found = _Found(raw.notes, source)
    for leaf in _leaves(tree):
        _take(found, raw, leaf)
    for axes, is_at_top in _axes(tree):
        try:
            size = _axes_pm(axes, raw.notes)
        except FileFault:
            if is_at_top:
                raise
        else:
            if size:
                found.add(PIXEL_SIZE, size)
    _add(raw, found)


@dataclass
class _Found:
    """The numbers of a tree, by our fields.

    Attributes:
        notes: those of the frame.
        source: name of the tree.
        numbers: the first of each field.
        ones: fields whose number is exactly 1 of its unit.
    """

    notes: list[str]
    source: str
    numbers: dict[str, float] = field(default_factory=dict)
    ones: set[str] = field(default_factory=set)

    def add(self, name: str, number: float, *, is_unset: bool = False) -> None:
        """Add a number; of two the first counts, with a note, unless it was exactly 1."""
        if name not in self.numbers or (name in self.ones and not is_unset):
            self.numbers[name] = number
            (self.ones.add if is_unset else self.ones.discard)(name)
        elif not is_unset and abs(self.numbers[name] - number) > 0.01 * abs(number):
            self.notes.append(
                f"{self.source} states {name} twice, {self.numbers[name]:.6g} and {number:.6g}: "
                "the first was taken"
            )

    def edge_pm(self) -> float | None:
        """Return the edge of a pixel; it is unknown if it is exactly 1 along both axes."""
        sides = [side for side in (PIXEL_SIZE + " y", PIXEL_SIZE) if side in self.numbers]
        y_pm, x_pm = (self.numbers.pop(side, None) for side in (PIXEL_SIZE + " y", PIXEL_SIZE))
        if sides and self.ones.issuperset(sides):
            self.notes.append(f"{self.source}: its pixel size is exactly 1, {ONE_IS_UNKNOWN}")
            return None
        return square_pm(y_pm, x_pm, self.notes)


def _axes(tree: Any, depth: int = 0) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """Yield every group of calibrated axes, and whether it is at the top of the tree.

    One calibration at the top is of rows and columns alike.
    """
    if not isinstance(tree, dict | list) or depth > 20:
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        axes = list(value.values()) if isinstance(value, dict) else value
        is_group = _plain(key) in _AXES and isinstance(axes, list) and len(axes) > 0
        is_one_of_both = not depth and _plain(key) in _CALIBRATIONS and isinstance(value, dict)
        if is_group and all(isinstance(one, dict) and "scale" in one for one in axes):
            yield axes, not depth
        elif is_one_of_both and "scale" in value:
            yield [value, value], True
        else:
            yield from _axes(value, depth + 1)


def _axes_pm(axes: list[dict[str, Any]], notes: list[str]) -> float | None:
    """Return the pixel size that axes state.

    Raises:
        FileFault: they are not those of a frame.
    """
    units = [str(axis.get("units") or axis.get("unit") or "") for axis in axes]
    for place, (axis, unit) in enumerate(zip(axes, units, strict=True)):
        check_axis(unit, str(axis.get("name", "")), is_of_stack=place < len(axes) - 2)
    if len(axes) < 2:
        return None
    y, x = (abs(as_number(axis["scale"]) or 0.0) for axis in axes[-2:])  # below zero if mirrored
    return pixel_pm((y, units[-2]), (x, units[-1]), notes)


def _leaves(
    tree: Any, depth: int = 0, usual: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[str, Any, str]]:
    """Yield (name, value, unit) of every number and text; the unit may be in another entry.

    `usual` has the units of the program that wrote the tree, by name.
    """
    if isinstance(tree, dict) and depth < 20:
        for key, value in tree.items():
            units = _HYPERSPY_UNITS if key == _HYPERSPY else usual
            unit = _unit_of(tree, str(key)) or usual.get(str(key), "")
            is_pair_of_sizes = _plain(key) == "pixelsize"
            if isinstance(value, dict) and "value" in value:
                unit, value = _first_text(value, "unit", "units") or unit, value["value"]
                if not (is_pair_of_sizes and _is_pair(value)):
                    yield str(key), value, unit
                    continue
            if is_pair_of_sizes and _is_pair(value):
                yield from (
                    (f"pixelsize{axis}", one, unit) for axis, one in zip("yx", value, strict=True)
                )
            elif isinstance(value, dict | list):
                inside = list(_leaves(value, depth + 1, units))
                yield from inside
                # A known name without a known entry is not understood; a note must say so.
                if _plain(key) in NAMES and not any(_plain(name) in NAMES for name, *_ in inside):
                    yield str(key), value, ""
            else:
                yield str(key), value, unit
    elif isinstance(tree, list) and depth < 20:
        for value in tree:
            yield from _leaves(value, depth + 1, usual)


def _is_pair(value: Any) -> bool:
    """Return whether a value is two numbers, or two texts that may have units."""
    if not isinstance(value, list) or len(value) != 2:
        return False
    texts = sum(isinstance(one, str) for one in value)
    return texts == 2 or (not texts and all(as_number(one) is not None for one in value))


def _plain(key: object) -> str:
    """Return a name in the form of `NAMES`: without unit, case, sign and blank."""
    name = str(key)
    suffix = _SUFFIX.search(name)
    return re.sub(r"[^a-z0-9]", "", (name[: suffix.start()] if suffix else name).lower())


def _unit_of(group: dict[str, Any], key: str) -> str:
    """Return the unit of an entry: KEY_unit, else the end of its name, else that of the group.

    KEY_unit may be one for a pair KEY_x and KEY_y. The unit of the group may be of another entry,
    so it counts only for a length, and only if it is one, or a reciprocal, or of nothing else.
    """
    stems = [key, re.sub(r"_[xy]$", "", key)]
    beside = _first_text(group, *(f"{stem}_{word}" for stem in stems for word in ("units", "unit")))
    suffix = _SUFFIX.search(key)
    if beside or suffix:
        return beside or (suffix[1] if suffix else "")
    unit = _first_text(group, "units", "unit")
    if not NAMES.get(_plain(key), ("",))[0].startswith((PIXEL_SIZE, FIELD_OF_VIEW)):
        return ""
    is_alone = not any(as_number(value) is not None for name, value in group.items() if name != key)
    return unit if factor(unit, "pm") or is_reciprocal(unit) or is_alone else ""


def _first_text(group: Mapping[str, Any], *names: str) -> str:
    """Return the first text under one of some names; a null and a tree are none."""
    texts = (group.get(name) for name in names)
    return next((text for text in texts if isinstance(text, str) and text), "")


def _take(found: _Found, raw: Raw, leaf: tuple[str, Any, str]) -> None:
    """Read one entry."""
    key, value, stated = leaf
    name, file = _plain(key), found.source
    if name in ("materialtype", "material", "specimen") and isinstance(value, str):
        raw.material = raw.material or value
    if name in _KINDS and isinstance(value, str) and raw.modality == "unknown":
        raw.modality = detector_named(value) or "unknown"
    if name not in NAMES or isinstance(value, bool) or value is None:
        return
    quantity, usual, sign = NAMES[name]
    ours = OURS[PIXEL_SIZE if quantity.startswith(PIXEL_SIZE) else quantity]
    read_as = stated or _si_unit(value, quantity, usual) or usual
    number = measure(value, read_as, ours)
    if not stated and read_as != usual:
        raw.notes.append(f"{file}: {key} {value} was taken as {read_as}, not as {usual}")
    is_length = quantity.startswith((PIXEL_SIZE, FIELD_OF_VIEW))
    if is_length and isinstance(value, str | int | float):
        check_axis(_MEASURED.sub("", str(value)) or stated)
    if number is None:
        if as_number(value) != 0 and value != "":
            given = f"{value!r} {stated}".rstrip()
            raw.notes.append(f"{file}: {key} {given} was not understood")
        return
    written = _MEASURED.match(str(value))
    is_unset = written is not None and is_one(written[0]) and quantity.startswith(PIXEL_SIZE)
    found.add(quantity, number * sign, is_unset=is_unset)


def _si_unit(value: object, quantity: str, usual: str) -> str:
    """Return the SI unit of a bare number that is out of reach in the usual unit, else nothing."""
    number = abs(as_number(value) or 0.0)
    is_beyond, unit = _BARE.get(quantity) or _BARE.get(usual, (lambda _: False, ""))
    return unit if number and is_beyond(number) else ""


def _add(raw: Raw, found: _Found) -> None:
    """Add numbers that the file of the frame does not have, and implied pixel sizes."""
    file = found.source
    rows, columns = raw.array.shape[-2:] if raw.array.ndim >= 2 else (0, 0)
    edge_pm = found.edge_pm()
    if edge_pm is not None:
        raw.implied[file] = edge_pm
    for quantity, number in found.numbers.items():
        if quantity == FIELD_OF_VIEW and columns:
            raw.implied[f"the field of view in {file}"] = number / columns
        elif quantity.startswith(FIELD_OF_VIEW) and rows:
            raw.implied[f"the field of view along y in {file}"] = number / rows
        elif quantity in OURS and number:
            known = raw.values.setdefault(quantity, number)
            if abs(known - number) > 0.01 * abs(known):
                raw.notes.append(
                    f"{quantity}: the frame's file says {known:.6g}, {file} {number:.6g}: "
                    f"{known:.6g} was taken"
                )
