"""The condition of a frame, from its file and from the caller.

Of several numbers one is taken, in a fixed order; numbers are never averaged. A note says which
other numbers differ.
"""

import re
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from manybeam.data.io.formats import Raw
from manybeam.errors import InvalidInput
from manybeam.spec.imaging import Condition, Imaging, other_units, quantity_bounds

SAME = 0.01  # largest relative difference of two equal numbers
SAME_SIZE = 0.02  # the same for two pixel sizes in one file, because one is often rounded
SAME_DOSE = 0.2  # the same for two doses: currents are known to a few per cent
LOOSELY = {"dose_e_per_a2": SAME_DOSE, "optics.beam_current_pa": SAME_DOSE}
ELECTRON_PA_US = 0.1602176634  # charge of the electron in pA us: 1.602e-19 C


def dose_e_per_a2(current_pa: float, dwell_us: float, pixel_size_pm: float) -> float:
    """Return the dose of one pass, I t / (e p^2), in electrons per square ångström.

    Example:
        >>> round(dose_e_per_a2(60, 16, 7.8) / 1e5, 2)
        9.85
    """
    electrons = current_pa * dwell_us / ELECTRON_PA_US
    return electrons / (pixel_size_pm / 100) ** 2


def settle_pixel_size(
    raw: Raw, given: float | None, condition: Condition | None, notes: list[str]
) -> float | None:
    """Return the pixel size that counts (pm), and note every contradiction.

    The order is: size of the caller, calibration of the file, sizes that other parts of the file
    imply (field of view, a second header), size of the condition.

    Raises:
        InvalidInput: the size of the caller is out of bounds.
    """
    low, high, unit = quantity_bounds()["scan.pixel_size_pm"]
    if given is not None and not low <= given <= high:
        raise InvalidInput(
            f"pixel size {given!r} pm is not from {low:g} to {high:g} {unit}",
            "it is the edge of a pixel in picometres",
            f"correct it (a 1024 px frame 8 nm wide has 7.8){other_units(given, low, high, unit)}",
        )
    filed = _filed(raw, notes)
    if filed is not None and not low <= filed <= high:
        notes.append(_outside("scan.pixel_size_pm", filed))
        filed = None
    expected = condition.scan.pixel_size_pm if condition else None
    sizes = {"the file": filed, "the caller": given, "the condition": expected}
    known = {who: float(size) for who, size in sizes.items() if isinstance(size, float | int)}
    if not known:
        return None
    taken = next(known[who] for who in ("the caller", "the file", "the condition") if who in known)
    for (who, size), (other, its) in combinations(known.items(), 2):
        if abs(its - size) > SAME * size:
            notes.append(
                f"{who} says {size:.6g} pm a pixel, {other} {its:.6g}: {taken:.6g} was taken"
            )
    return taken


def _outside(path: str, value: float) -> str:
    low, high, unit = quantity_bounds()[path]
    return f"{path} {value:.6g} is outside {low:g} to {high:g} {unit}: left unknown"


def _filed(raw: Raw, notes: list[str]) -> float | None:
    """Return the pixel size of the file, and note what else in the file contradicts it."""
    implied = {who: size for who, size in raw.implied.items() if size > 0}
    if raw.pixel_size_pm is None and any("not square" in note for note in notes):
        return None
    size, source = raw.pixel_size_pm, "its calibration"
    if size is None and implied:
        source, size = next(iter(implied.items()))
        notes.append(f"the pixel size, {size:.6g} pm, is from {source}")
    for who, other in implied.items():
        if size is not None and abs(other - size) > SAME_SIZE * size:
            notes.append(
                f"two pixel sizes: {source} says {size:.6g} pm, {who} {other:.6g} pm: "
                f"{size:.6g} was taken"
            )
    return size


def settle_condition(
    raw: Raw,
    path: Path,
    shape: tuple[int, ...],
    pixel_size_pm: float | None,
    given: Condition | None,
    notes: list[str],
) -> Condition:
    """Return the measured condition: values of the caller, and of the file for the others."""
    known: dict[str, Any] = given.model_dump(exclude_none=True) if given else _named(raw, path)
    bounds = quantity_bounds()
    found = dict(raw.values) | ({"scan.pixel_size_pm": pixel_size_pm} if pixel_size_pm else {})
    for path_, value in found.items():
        if not bounds[path_][0] <= value <= bounds[path_][1]:
            notes.append(_outside(path_, value))
            continue
        group, _, name = path_.rpartition(".")
        mine = (known.setdefault(group, {}) if group else known).setdefault(name, value)
        if abs(mine - value) > SAME * abs(value) and name != "pixel_size_pm":
            notes.append(f"{path_}: the file says {value:.6g}, the condition {mine:.6g}: kept")
    scan = known.setdefault("scan", {})
    scan["shape"] = tuple(shape[-2:])
    if pixel_size_pm and "pixel_size_pm" in scan:
        scan["pixel_size_pm"] = pixel_size_pm
    _settle_detector(known, given, notes)
    _settle_dose(known, bounds["dose_e_per_a2"][:2], notes)
    return Condition.model_validate(known | {"origin": "measured"})


def with_inferred_size(
    condition: Condition, inferred: str, pixel_size_pm: float, notes: list[str]
) -> Condition:
    """Return a measured condition whose pixel size was inferred, and the dose that follows.

    Args:
        condition: without a pixel size.
        inferred: the inferred size with its error, as text for the title.
        pixel_size_pm: edge of a pixel.
        notes: receives the origin of the dose.
    """
    known = condition.model_dump(exclude_none=True)
    known["scan"]["pixel_size_pm"] = pixel_size_pm
    _settle_dose(known, quantity_bounds()["dose_e_per_a2"][:2], notes)
    trace = f"pixel size inferred: {inferred}"
    title = f"{condition.title[: 198 - len(trace)]}; {trace}" if condition.title else trace
    return Condition.model_validate(known | {"origin": "inferred", "title": title})


def check_one_condition(known: Mapping[str, Imaging]) -> None:
    """Refuse conditions with different values of one quantity; unknown values are allowed.

    Args:
        known: conditions by the name of their file.

    Raises:
        InvalidInput: two differ; the message has the quantity and both numbers.
    """
    first: dict[str, tuple[str, float]] = {}
    for who, imaging in known.items():
        for path, value in imaging.quantities():
            if not isinstance(value, float | int):
                continue
            other, its = first.setdefault(path, (who, float(value)))
            if abs(its - value) > LOOSELY.get(path, SAME) * abs(its):
                raise InvalidInput(
                    f"{path}: {its:.6g} of {other}, {value:.6g} of {who}",
                    "one set of frames has one condition",
                    "use the files of each condition separately, or pass --condition",
                )


def _settle_detector(known: dict[str, Any], given: Condition | None, notes: list[str]) -> None:
    """Drop angles that make no ring: that of the file if the caller gave the other, else both."""
    ring = known.get("detector", {})
    names = ("detector_inner_mrad", "detector_outer_mrad")
    inner, outer = (ring.get(name) for name in names)
    if inner is None or outer is None or inner < outer:
        return
    filed = [name for name in names if given is None or getattr(given.detector, name) is None]
    dropped = filed if len(filed) == 1 else list(names)
    which = "both" if len(dropped) == 2 else dropped[0]
    notes.append(
        f"detector_inner_mrad {inner:.6g} is not below detector_outer_mrad {outer:.6g}: "
        f"{which} left unknown"
    )
    for name in dropped:
        del ring[name]


def _settle_dose(known: dict[str, Any], limits: tuple[float, float], notes: list[str]) -> None:
    """Derive the dose from current, dwell time and pixel size, or check the stated one."""
    current = known.get("optics", {}).get("beam_current_pa")
    dwell, size = (known["scan"].get(name) for name in ("dwell_us", "pixel_size_pm"))
    if not (current and dwell and size):
        return
    derived, stated = dose_e_per_a2(current, dwell, size), known.get("dose_e_per_a2")
    how = f"{current:.4g} pA x {dwell:.4g} us on {size:.4g} pm"
    if stated is None and limits[0] <= derived <= limits[1]:
        known["dose_e_per_a2"] = derived
        notes.append(f"dose_e_per_a2 {derived:.3g} is derived: {how}")
    elif stated is not None and abs(derived - stated) > SAME_DOSE * stated:
        notes.append(
            f"dose_e_per_a2: {stated:.3g} is stated, {how} make {derived:.3g}: "
            f"{stated:.3g} was taken"
        )


def _named(raw: Raw, path: Path) -> dict[str, Any]:
    """Return id, title, modality and sample of a condition known from the file alone."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).lstrip("._-")[:100]
    modality = re.sub(r"[^a-z0-9]+", "-", raw.modality.lower()).strip("-")[:40]
    return {
        "id": slug or "frame",
        "title": path.name[:200],
        "modality": modality or "unknown",
        "sample": {"material": raw.material[:100]},
    }
