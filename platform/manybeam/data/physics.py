"""Conditions that can be written down but hardly be had: each told in a sentence with its number.

What no microscope can be set to at all (a negative dose) `spec` refuses; what is here simulates,
but whoever set it may have meant another number. Of a range the end that is worse counts.
"""

import math
from collections.abc import Callable, Iterator

from manybeam.data.measured import SAME_DOSE, dose_e_per_a2
from manybeam.spec.imaging import Imaging, Quantity, Range

# Beam energy above which electrons knock atoms out of the material, in kV.
# Source: graphene: Meyer et al., Phys. Rev. Lett. 108, 196102 (2012); MoS2 (sulphur): Komsa et
# al., Phys. Rev. Lett. 109, 035503 (2012).
KNOCK_ON_KV = {"graphene": 86.0, "mos2": 80.0}
DEEP = 4.0  # depths of field: a probe further out of focus shows rings, not atoms
FEW_ELECTRONS = 1.0  # in a pixel: below, most pixels of a dark-field frame count nothing


def warnings_for(imaging: Imaging) -> list[str]:
    """Return what is doubtful about a condition or policy, a sentence each, numbers included.

    Unknown quantities are not doubted.

    Example:
        >>> from manybeam.spec import Condition
        >>> optics, scan = {"beam_kv": 60, "convergence_mrad": 30}, {"pixel_size_pm": 50}
        >>> warnings_for(Condition(id="a", optics=optics, scan=scan))[0][:66]
        "pixel_size_pm 50 is above the probe's Nyquist limit of 40.5 pm (la"
    """
    checks = (_convergence, _nyquist, _dose, _electrons, _knock_on, _focus)
    return [sentence for check in checks for sentence in check(imaging)]


def wavelength_pm(beam_kv: float) -> float:
    """Return the relativistic wavelength of electrons, in pm.

    Example:
        >>> round(wavelength_pm(200), 3)
        2.508
    """
    volt = beam_kv * 1e3
    return 1226.39 / math.sqrt(volt * (1 + 0.97845e-6 * volt))


def _end(value: Quantity, pick: Callable[[float, float], float]) -> float | None:
    """Return a number, or the end of a range that `pick` (min or max) takes."""
    return pick(value.low, value.high) if isinstance(value, Range) else value


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


def _dose(imaging: Imaging) -> Iterator[str]:
    stated = imaging.dose_e_per_a2
    parts = (imaging.optics.beam_current_pa, imaging.scan.dwell_us, imaging.scan.pixel_size_pm)
    lows, highs = ([_end(part, pick) for part in parts] for pick in (min, max))
    if stated is None or not all(lows) or not all(highs):
        return
    least = dose_e_per_a2(lows[0] or 0, lows[1] or 0, highs[2] or 1)
    most = dose_e_per_a2(highs[0] or 0, highs[1] or 0, lows[2] or 1)
    low, high = _end(stated, min) or 0, _end(stated, max) or 0
    if high < least * (1 - SAME_DOSE) or low > most * (1 + SAME_DOSE):
        made = f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"
        told = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        yield (
            f"dose_e_per_a2 {told} is not what beam current, dwell time and pixel size make: {made}"
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
    ends = [_end(imaging.optics.defocus_nm, pick) for pick in (min, max)]
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
