"""Typical numbers of each structure, used for unknown quantities of a condition."""

from typing import TypeVar

from manybeam.data.io.measured import dose_e_per_a2
from manybeam.errors import InvalidInput
from manybeam.spec import Range
from manybeam.spec.imaging import Imaging

_ALWAYS = {
    "optics.convergence_mrad": 30.0,
    "optics.focal_spread_nm": 4.0,
    "optics.source_fwhm_pm": 60.0,
    "scan.row_jitter_pm": 5.0,
    "detector.detector_inner_mrad": 70.0,
    "detector.detector_outer_mrad": 200.0,
    "detector.readout_e": 0.3,
    "detector.gamma": 1.0,
    "detector.saturation": 1.0,
    "detector.gain": 1.0,
}
_GRAPHENE = {
    "sample.vacancy_fraction": 0.01,
    "sample.silicon_fraction": 0.005,
    "sample.nitrogen_fraction": 0.01,
    "sample.hole_probability": 0.25,
    "sample.strain": 0.01,
    "optics.beam_kv": 60.0,
    "scan.pixel_size_pm": 16.0,
    "dose_e_per_a2": 1.2e6,
    "state.background": 0.3,
    "state.contamination": 0.05,
}
_HEAVY = {
    "sample.hole_probability": 0.8,
    "sample.atoms_per_nm2": 0.3,
    "sample.atomic_number": 78.0,
    "sample.atom_width_pm": 90.0,
    "sample.signal_spread": 0.25,
    "sample.gathered_share": 0.25,
    "sample.support_nm": 75.0,
    "sample.support_relief": 0.105,
    "sample.support_grain_nm": 4.0,
    "optics.beam_kv": 200.0,
    "optics.source_fwhm_pm": 95.0,
    "scan.pixel_size_pm": 29.3,
    "dose_e_per_a2": 8e4,
    "state.background": 12.0,
}
_MOS2 = {
    "sample.vacancy_fraction": 0.02,
    "sample.vanadium_fraction": 0.01,
    "sample.hole_probability": 0.15,
    "sample.strain": 0.005,
    "optics.beam_kv": 60.0,
    "scan.pixel_size_pm": 15.0,
    "dose_e_per_a2": 2e5,
    "state.background": 8.0,
    "state.contamination": 1.0,
}
_CRYSTAL = {
    "sample.thickness_nm": 5.0,
    "sample.strain": 0.003,
    "optics.beam_kv": 200.0,
    "optics.convergence_mrad": 25.0,
    "scan.pixel_size_pm": 15.0,
    "dose_e_per_a2": 4e4,
    "state.background": 100.0,
}
TYPICAL: dict[str, dict[str, float]] = {
    "graphene": _ALWAYS | _GRAPHENE,
    "heavy_atoms": _ALWAYS | _HEAVY,
    "mos2": _ALWAYS | _MOS2,
    "lsmo": _ALWAYS | _CRYSTAL,
    "grain_boundary": _ALWAYS | _CRYSTAL | {"sample.tilt_deg": 20.0, "optics.beam_kv": 300.0},
    "crystal": _ALWAYS | _CRYSTAL,
}


Written = TypeVar("Written", bound=Imaging)


def filled(imaging: Written) -> Written:
    """Return a condition or policy with typical numbers for unknown quantities.

    Structures that cannot be simulated have no typical numbers and are returned unchanged.

    Raises:
        InvalidInput: see `typical`.
    """
    if imaging.sample.structure not in TYPICAL:
        return imaging
    numbers, known = typical(imaging), TYPICAL[imaging.sample.structure]
    update: dict[str, object] = {}
    for group in ("sample", "optics", "detector", "scan", "state"):
        mine = {path.partition(".")[2]: path for path in known if path.startswith(f"{group}.")}
        now = {name: numbers[path] for name, path in mine.items()}
        update[group] = getattr(imaging, group).model_copy(update=now)
    return imaging.model_copy(update={**update, "dose_e_per_a2": numbers["dose_e_per_a2"]})


def typical(imaging: Imaging) -> dict[str, float | Range]:
    """Return every quantity by its dotted path; unknown ones are typical of the structure.

    An unknown dose follows from beam current, dwell time and pixel size, if they are known; from
    ranges of these it is a range.

    Raises:
        InvalidInput: the structure is unknown; or the detector is no ring, also with typical
            angles.
    """
    structure = imaging.sample.structure
    if structure not in TYPICAL:
        raise InvalidInput(
            f"{imaging.id!r} has sample.structure {structure!r}, which cannot be simulated",
            f"structures: {', '.join(TYPICAL)}",
            "give sample.structure, or choose a simulated condition",
        )
    defaults = TYPICAL[structure]
    numbers = {
        path: defaults.get(path, 0.0) if value is None else value
        for path, value in imaging.quantities()
    }
    _check_ring(imaging, numbers)
    if imaging.dose_e_per_a2 is None:
        numbers["dose_e_per_a2"] = _made_dose(numbers) or numbers["dose_e_per_a2"]
    return numbers


def _made_dose(numbers: dict[str, float | Range]) -> float | Range | None:
    """Return the dose from current, dwell time and pixel size; None if one is unknown."""
    parts = [numbers[path] for path in ("optics.beam_current_pa", "scan.dwell_us")]
    if not all(parts):
        return None
    (low_pa, high_pa), (low_us, high_us), (low_pm, high_pm) = (
        (one.low, one.high) if isinstance(one, Range) else (one, one)
        for one in (*parts, numbers["scan.pixel_size_pm"])
    )
    low, high = dose_e_per_a2(low_pa, low_us, high_pm), dose_e_per_a2(high_pa, high_us, low_pm)
    return low if low == high else Range(low=low, high=high)


def _check_ring(imaging: Imaging, numbers: dict[str, float | Range]) -> None:
    """Refuse a detector without area: its frames would have only readout noise."""
    inner, outer = (numbers[f"detector.detector_{side}_mrad"] for side in ("inner", "outer"))
    most = inner.high if isinstance(inner, Range) else inner
    least = outer.low if isinstance(outer, Range) else outer
    if most < least:
        return
    stated = (imaging.detector.detector_inner_mrad, imaging.detector.detector_outer_mrad)
    names = ("detector_inner_mrad", "detector_outer_mrad")
    left_open = [name for name, value in zip(names, stated, strict=True) if value is None]
    raise InvalidInput(
        f"{imaging.id!r}: detector_inner_mrad {most:g} is not below detector_outer_mrad {least:g}",
        f"the detector is a ring; typical: {', '.join(left_open)}"
        if left_open
        else "the detector is a ring",
        "give both angles, every inner one below every outer one",
    )
