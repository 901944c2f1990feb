"""What is typical of each structure: numbers in place of those that a condition leaves open."""

from manybeam.errors import InvalidInput
from manybeam.spec import Condition, Policy, Range

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


def typical(imaging: Condition | Policy) -> dict[str, float | Range]:
    """Return every quantity by its dotted path, the unknown ones typical of the structure.

    Raises:
        InvalidInput: the structure is unknown, so there is nothing to draw.
    """
    structure = imaging.sample.structure
    if structure not in TYPICAL:
        raise InvalidInput(
            f"{imaging.id!r} has sample.structure {structure!r}, which cannot be simulated",
            f"structures: {', '.join(TYPICAL)}",
            "give sample.structure, or choose a simulated condition",
        )
    defaults = TYPICAL[structure]
    return {
        path: defaults.get(path, 0.0) if value is None else value
        for path, value in imaging.quantities()
    }
