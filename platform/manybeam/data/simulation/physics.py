"""Warnings about conditions that are hardly possible, each a sentence with the number.

`spec` refuses impossible values, such as a negative dose. The values here can be simulated, but may
be mistakes. Of a range, the worse end counts.
"""

import math
from collections.abc import Callable, Iterator

from manybeam.data.io.measured import SAME_DOSE, dose_e_per_a2
from manybeam.spec.imaging import Imaging, Quantity, Range

# Quantities of a sample that only some structures have.
_CRYSTAL = {"vacancy_fraction", "hole_probability", "strain"}
_SLAB = _CRYSTAL | {"thickness_nm", "zone_axis"}
DRAWN: dict[str, set[str]] = {
    "graphene": _CRYSTAL | {"silicon_fraction", "nitrogen_fraction"},
    "mos2": _CRYSTAL | {"vanadium_fraction"},
    "lsmo": _SLAB,
    "crystal": _SLAB | {"file"},
    "grain_boundary": _SLAB - {"hole_probability"} | {"tilt_deg", "element", "file"},
    "heavy_atoms": {
        *("hole_probability", "atoms_per_nm2", "atomic_number", "atom_motion_pm"),
        *("gathered_share", "specks_per_nm2", "least_visibility", "signal_spread"),
        *("support_nm", "support_relief", "support_grain_nm"),
    },
}
OF_SOME = sorted(set().union(*DRAWN.values()) - {"file", "zone_axis", "element"})
# Beam energy above which electrons knock atoms out of the material, in kV.
# Source: graphene: Meyer et al., Phys. Rev. Lett. 108, 196102 (2012); MoS2 (sulphur): Komsa et
# al., Phys. Rev. Lett. 109, 035503 (2012).
KNOCK_ON_KV = {"graphene": 86.0, "mos2": 80.0}
DEEP = 4.0  # depths of field; with more defocus, atoms are rings
COARSE_PM = 200.0  # a probe of this radius cannot separate neighbours in any crystal
SHEARED = 0.5  # pixels of drift per row, which shears a lattice by 27 degrees
FEW_ELECTRONS = 1.0  # in a pixel; with less, most pixels of a dark-field frame are empty


def warnings_for(imaging: Imaging) -> list[str]:
    """Return a sentence with numbers on each doubtful value of a condition or policy.

    Unknown quantities cause no warning.

    Example:
        >>> from manybeam.spec import Condition
        >>> optics, scan = {"beam_kv": 60, "convergence_mrad": 30}, {"pixel_size_pm": 50}
        >>> warnings_for(Condition(id="a", optics=optics, scan=scan))[0][:66]
        "pixel_size_pm 50 is above the probe's Nyquist limit of 40.5 pm (la"
    """
    checks = (
        *(_unused, _convergence, _diffraction, _nyquist, _dose, _electrons, _knock_on),
        *(_focus, _aberrations, _shear),
    )
    return [sentence for check in checks for sentence in check(imaging)]


def wavelength_pm(beam_kv: float) -> float:
    """Return the relativistic wavelength of electrons, in pm.

    Example:
        >>> round(wavelength_pm(200), 3)
        2.508
    """
    volt = beam_kv * 1e3
    return 1226.39 / math.sqrt(volt * (1 + 0.97845e-6 * volt))


def _end(value: Quantity, extreme: Callable[[float, float], float]) -> float | None:
    """Return a number, or the end of a range that `extreme` (min or max) takes."""
    return extreme(value.low, value.high) if isinstance(value, Range) else value


def _convergence(imaging: Imaging) -> Iterator[str]:
    alpha = _end(imaging.optics.convergence_mrad, max)
    inner = _end(imaging.detector.detector_inner_mrad, min)
    if alpha is not None and inner is not None and alpha > inner:
        yield (
            f"convergence_mrad {alpha:g} reaches beyond detector_inner_mrad {inner:g}: the "
            "unscattered beam falls on the detector, which is bright field and no longer incoherent"
        )


def _nyquist(imaging: Imaging) -> Iterator[str]:
    """The probe passes frequencies up to 2 alpha / lambda; two pixels must fit into a period."""
    size = _end(imaging.scan.pixel_size_pm, max)
    alpha, kv = _end(imaging.optics.convergence_mrad, max), _end(imaging.optics.beam_kv, max)
    if size is None or not alpha or kv is None:
        return
    limit = wavelength_pm(kv) / (4 * alpha * 1e-3)
    if size > limit:
        yield (
            f"pixel_size_pm {size:g} is above the probe's Nyquist limit of {limit:.3g} pm "
            f"(lambda / 4 alpha at {kv:g} kV, {alpha:g} mrad): detail finer than two pixels folds "
            "back as a false pattern"
        )


def _unused(imaging: Imaging) -> Iterator[str]:
    """Values that the structure of the sample does not use have no effect."""
    sample, drawn = imaging.sample, DRAWN.get(imaging.sample.structure)
    if drawn is None:
        return
    for name in (*OF_SOME, "file", "zone_axis", "element"):
        value = getattr(sample, name)
        if value is not None and name not in drawn and _magnitude(value):
            yield (
                f"sample.{name} {_written(value)} has no effect: {sample.structure} does not use it"
            )
    amorphous = imaging.state.amorphous
    if sample.structure == "heavy_atoms" and amorphous is not None and _magnitude(amorphous):
        yield f"state.amorphous {_written(amorphous)} has no effect: heavy_atoms uses support_nm"


def _magnitude(value: object) -> float:
    """Return the largest magnitude of a quantity; 1 if it is not a number."""
    ends = (value.low, value.high) if isinstance(value, Range) else (value,)
    return max(abs(end) if isinstance(end, int | float) else 1.0 for end in ends)


def _written(value: object) -> str:
    if isinstance(value, Range):
        return f"{value.low:g} to {value.high:g}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _diffraction(imaging: Imaging) -> Iterator[str]:
    alpha, kv = _end(imaging.optics.convergence_mrad, min), _end(imaging.optics.beam_kv, min)
    if not alpha or kv is None:
        return
    radius = 0.61e3 * wavelength_pm(kv) / alpha
    if radius > COARSE_PM:
        yield (
            f"convergence_mrad {alpha:g} makes a probe of {radius:.3g} pm (0.61 lambda / alpha at "
            f"{kv:g} kV): neighbouring atoms run together"
        )


def _dose(imaging: Imaging) -> Iterator[str]:
    stated = imaging.dose_e_per_a2
    parts = (imaging.optics.beam_current_pa, imaging.scan.dwell_us, imaging.scan.pixel_size_pm)
    lows, highs = ([_end(part, extreme) for part in parts] for extreme in (min, max))
    if stated is None or not all(lows) or not all(highs):
        return
    least = dose_e_per_a2(lows[0] or 0, lows[1] or 0, highs[2] or 1)
    most = dose_e_per_a2(highs[0] or 0, highs[1] or 0, lows[2] or 1)
    low, high = _end(stated, min) or 0, _end(stated, max) or 0
    if high < least * (1 - SAME_DOSE) or low > most * (1 + SAME_DOSE):
        made = f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"
        stated_text = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        yield (
            f"dose_e_per_a2 {stated_text} contradicts beam current, dwell time and pixel size, "
            f"which make {made}"
        )


def _electrons(imaging: Imaging) -> Iterator[str]:
    dose = _end(imaging.dose_e_per_a2, min)
    size = _end(imaging.scan.pixel_size_pm, min)
    if dose is not None and size is not None:
        electrons = dose * (size / 100) ** 2
        if electrons < FEW_ELECTRONS:
            yield (
                f"dose_e_per_a2 {dose:.3g} sends {electrons:.2g} electrons through a pixel of "
                f"{size:g} pm: of these a dark-field detector sees about one in a hundred"
            )


def _knock_on(imaging: Imaging) -> Iterator[str]:
    kv = _end(imaging.optics.beam_kv, max)
    limit = KNOCK_ON_KV.get(imaging.sample.structure)
    if kv is not None and limit is not None and kv > limit:
        yield (
            f"beam_kv {kv:g} is above {limit:g} kV, where electrons knock atoms out of "
            f"{imaging.sample.structure}: a sheet changes while it is recorded"
        )


def _focus(imaging: Imaging) -> Iterator[str]:
    ends = [_end(imaging.optics.defocus_nm, extreme) for extreme in (min, max)]
    alpha, kv = _end(imaging.optics.convergence_mrad, max), _end(imaging.optics.beam_kv, max)
    if None in ends or not alpha or kv is None:
        return
    defocus = max((end for end in ends if end is not None), key=abs)
    depth = wavelength_pm(kv) / (alpha * 1e-3) ** 2 / 1000
    if abs(defocus) > DEEP * depth:
        yield (
            f"defocus_nm {defocus:g} is {abs(defocus) / depth:.1f} depths of field "
            f"({depth:.3g} nm, lambda / alpha^2): atoms are rings, or not there"
        )


def _aberrations(imaging: Imaging) -> Iterator[str]:
    """The phase at the edge of the aperture, compared with the limit of `_focus`.

    A spherical aberration counts a quarter, because the best defocus cancels the rest.
    """
    alpha, kv = _end(imaging.optics.convergence_mrad, max), _end(imaging.optics.beam_kv, min)
    if not alpha or kv is None:
        return
    rad, wave_nm = alpha * 1e-3, wavelength_pm(kv) / 1000
    paths = {  # nm of path at the edge for each unit, and wavelengths that leave a probe
        "cs_um": (rad**4 / 16 * 1e3, DEEP / 2),
        "astigmatism_nm": (rad**2 / 2, DEEP / 2),
        "coma_nm": (rad**3 / 3, DEEP / 4),
        "trefoil_nm": (rad**3 / 3, DEEP / 4),
    }
    for name, (per_unit, most) in paths.items():
        value = getattr(imaging.optics, name)
        waves = per_unit * _magnitude(value) / wave_nm if value is not None else 0.0
        if waves > most:
            yield (
                f"{name} {_written(value)} is {waves:.3g} wavelengths at the edge of an aperture "
                f"of {alpha:g} mrad (at most {most:g} leave a probe): atoms are not there"
            )


def _shear(imaging: Imaging) -> Iterator[str]:
    drift, size = imaging.scan.drift_pm_per_row, _end(imaging.scan.pixel_size_pm, min)
    if drift is not None and size and _magnitude(drift) > SHEARED * size:
        yield (
            f"drift_pm_per_row {_written(drift)} is {_magnitude(drift) / size:.2g} pixels of "
            f"{size:g} pm a row: the lattice is sheared beyond recognition"
        )
