"""What a file and its reader's caller say of the condition, brought together; never averaged.

One number is taken, in a fixed order, and every other that differs is told beside it.
"""

import re
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from manybeam.data.io.formats import Raw
from manybeam.errors import InvalidInput
from manybeam.spec.imaging import Condition, Imaging

SAME = 0.01  # relative difference of two numbers that say the same
SAME_CLAIM = 0.02  # and of two pixel sizes in one file, one of them often rounded
SAME_DOSE = 0.2  # and of two doses: currents are known to a few per cent
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

    The caller's counts before the file's, the file's calibration before what else the file
    implies (field of view, a second header), that before the condition's.

    Raises:
        InvalidInput: the caller's is no size that a condition may have.
    """
    low, high, unit = _bounds()["scan.pixel_size_pm"]
    if given is not None and not low <= given <= high:
        raise InvalidInput(
            f"pixel size {given!r} pm is not from {low:g} to {high:g} {unit}",
            "it is the edge of a pixel in picometres",
            "a 1024 px frame 8 nm wide has 7.8",
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
    low, high, unit = _bounds()[path]
    return f"{path} {value:.6g} is outside {low:g} to {high:g} {unit}: left unknown"


def _filed(raw: Raw, notes: list[str]) -> float | None:
    """Return the file's own pixel size, and tell what else in the file contradicts it."""
    claims = {who: size for who, size in raw.claims.items() if size > 0}
    if raw.pixel_size_pm is None and any("not square" in note for note in notes):
        return None
    size, source = raw.pixel_size_pm, "its calibration"
    if size is None and claims:
        source, size = next(iter(claims.items()))
        notes.append(f"the pixel size, {size:.6g} pm, is from {source}")
    for who, other in claims.items():
        if size is not None and abs(other - size) > SAME_CLAIM * size:
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
    """Return the measured condition: the caller's words first, the file's where they are silent."""
    known: dict[str, Any] = given.model_dump(exclude_none=True) if given else _named(raw, path)
    bounds = _bounds()
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
    condition: Condition, told: str, pixel_size_pm: float, notes: list[str]
) -> Condition:
    """Return a measured condition whose pixel size was inferred, and the dose that follows.

    Args:
        condition: without a pixel size.
        told: what was inferred, with its error, for the title.
        pixel_size_pm: edge of a pixel.
        notes: gets where the dose is from.
    """
    known = condition.model_dump(exclude_none=True)
    known["scan"]["pixel_size_pm"] = pixel_size_pm
    _settle_dose(known, _bounds()["dose_e_per_a2"][:2], notes)
    trace = f"pixel size inferred: {told}"
    title = f"{condition.title[: 198 - len(trace)]}; {trace}" if condition.title else trace
    return Condition.model_validate(known | {"origin": "inferred", "title": title})


def check_one_condition(known: Mapping[str, Imaging]) -> None:
    """Refuse conditions that state one quantity differently; what one leaves open is no fault.

    Args:
        known: a condition by the name of the file that states it.

    Raises:
        InvalidInput: two differ, which names the quantity and both numbers.
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
                    "take each kind by itself, or say with --condition which one counts",
                )


def _settle_detector(known: dict[str, Any], given: Condition | None, notes: list[str]) -> None:
    """Leave open what makes no ring: the file's angle beside one of the caller's, else both."""
    ring = known.get("detector", {})
    names = ("detector_inner_mrad", "detector_outer_mrad")
    inner, outer = (ring.get(name) for name in names)
    if inner is None or outer is None or inner < outer:
        return
    filed = [name for name in names if given is None or getattr(given.detector, name) is None]
    dropped = filed if len(filed) == 1 else list(names)
    told = "both" if len(dropped) == 2 else dropped[0]
    notes.append(
        f"detector_inner_mrad {inner:.6g} is not below detector_outer_mrad {outer:.6g}: "
        f"{told} left unknown"
    )
    for name in dropped:
        del ring[name]


def _settle_dose(known: dict[str, Any], limits: tuple[float, float], notes: list[str]) -> None:
    """Derive the dose from current, dwell time and pixel size, or hold a stated one against it."""
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


def _bounds() -> dict[str, tuple[float, float, str]]:
    """Return what each quantity of a condition may be, by its dotted path."""
    found = {}
    groups = {name: info.annotation for name, info in Condition.model_fields.items()}
    for group, kind in {"": Condition, **groups}.items():
        for name, field in getattr(kind, "model_fields", {}).items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and "unit" in extra:
                limits = (float(str(extra["low"])), float(str(extra["high"])), str(extra["unit"]))
                found[f"{group}.{name}" if group else name] = limits
    return found
