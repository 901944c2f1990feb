"""The probe: blur by lens, energy spread, source and thermal motion.

Axis letters: b frame of a batch, y and x spatial frequency of the canvas.

Source: E. J. Kirkland, Advanced Computing in Electron Microscopy, 2nd ed. (2010), chapters 2 and
3, for the wavelength and the aberration function; incoherent imaging as I = object * probe.
Compared with multislice images in decision 0008.
"""

import functools
import math
from collections.abc import Mapping

import numpy as np
import scipy.fft
import torch
from torch import Tensor

THERMAL_PM = 8.0  # rms displacement in projection
BOHR_PM = 52.9
REST_KV = 511.0  # rest energy of the electron
CARBON = 6
# The response of an atom falls off as exp(-share * frequency * wavelength / inner angle). The share
# is 0.16 to 0.35 in multislice images of C and Pt, 60 to 200 kV, 40 to 90 mrad, without probe and
# thermal motion. A Gaussian falls off too fast at the second ring of graphene.
ATOM_SHARE = 0.25
FWHM_PER_SIGMA = 2.354820045
MOST_FOCI = 61


def wavelength_pm(beam_kv: Tensor) -> Tensor:
    """Return the relativistic wavelength of electrons, in pm.

    Example:
        >>> round(float(wavelength_pm(torch.tensor(60.0))), 3)
        4.866
    """
    volt = beam_kv.double() * 1e3
    return (1226.39 / torch.sqrt(volt * (1 + 0.97845e-6 * volt))).to(beam_kv.dtype)


def collected(draw: Mapping[str, Tensor]) -> Tensor:
    """Return the share of carbon's scattering the detector collects, 1 at 60 kV and 70-200 mrad.

    Rutherford scattering screened at the angle of Lenz: beam energy and detector angles change
    how many electrons an atom sends to the detector.

    Source: L. Reimer and H. Kohl, Transmission Electron Microscopy, 5th ed. (2008), section 5.4.
    """
    usual = torch.tensor(60.0), torch.tensor(70.0), torch.tensor(200.0)
    angles = draw["detector_inner_mrad"], draw["detector_outer_mrad"]
    return _rutherford(draw["beam_kv"], *angles) / _rutherford(*usual)


def _rutherford(beam_kv: Tensor, inner_mrad: Tensor, outer_mrad: Tensor) -> Tensor:
    """Return carbon's cross-section between two angles, in arbitrary units."""
    lam = wavelength_pm(beam_kv)
    screening_mrad = 1e3 * 1.13 * CARBON ** (1 / 3) * lam / (2 * math.pi * BOHR_PM)
    lorentz = 1 + beam_kv / REST_KV
    ring = 1 / (inner_mrad**2 + screening_mrad**2) - 1 / (outer_mrad**2 + screening_mrad**2)
    return torch.as_tensor(ring.clamp_min(0) * lam**4 * lorentz**2)


def transfer(draw: Mapping[str, Tensor], angle_b3: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Return the transfer function of each frame's probe, source and atoms, (b, y, x // 2 + 1).

    Args:
        draw: quantities of each frame, (b,) each, by name and in their units.
        angle_b3: azimuths of astigmatism, coma and trefoil, in radians.
        canvas: rows and columns of the canvas, in pixels.
    """
    q = {name: value[:, None, None] for name, value in draw.items()}
    fy = torch.fft.fftfreq(canvas[0])[None, :, None] / q["pixel_size_pm"]
    fx = torch.fft.rfftfreq(canvas[1])[None, None, :] / q["pixel_size_pm"]
    return _centred(lens(draw, angle_b3, canvas)) * _blur(q, torch.hypot(fx, fy))


def lens(draw: Mapping[str, Tensor], angle_b3: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Return the transfer function of each frame's probe alone, (b, y, x // 2 + 1).

    It is 1 at frequency 0 and ends at twice the aperture, for any canvas. Frequencies that are too
    high for the pixels are left out, not folded back.

    Args:
        draw: quantities of each frame, (b,) each, by name and in their units.
        angle_b3: azimuths of astigmatism, coma and trefoil, in radians.
        canvas: rows and columns of the canvas, in pixels.
    """
    frames = [{name: value[b] for name, value in draw.items()} for b in range(len(angle_b3))]
    spectra = [_lens(q, angle_3, canvas) for q, angle_3 in zip(frames, angle_b3, strict=True)]
    return torch.stack(spectra)


def foci(phase_spread: float) -> tuple[tuple[float, float], ...]:
    """Return (defocus in standard deviations, weight) for a normal spread of focus.

    It is a Gauss-Hermite quadrature. Three foci are enough at 60 kV, 30 mrad and a spread of 4 nm,
    but have an error of .13 at 300 kV, 35 mrad and 6 nm, where eleven are used.

    Args:
        phase_spread: standard deviation of the phase at the edge of the aperture, in radians.
    """
    count = min(MOST_FOCI, 3 + 2 * math.ceil(max(0.0, phase_spread - 1.5)))
    return _gauss_hermite(count) if phase_spread > 0 else ((0.0, 1.0),)


def atom_blur(draw: Mapping[str, Tensor], canvas: tuple[int, int]) -> Tensor:
    """Return the extra transfer function of the atoms of the truth: motion, beam spread."""
    q = {name: draw[name][:, None, None] for name in ("atom_width_pm", "pixel_size_pm")}
    fy = torch.fft.fftfreq(canvas[0])[None, :, None] / q["pixel_size_pm"]
    fx = torch.fft.rfftfreq(canvas[1])[None, None, :] / q["pixel_size_pm"]
    sigma_pm = q["atom_width_pm"] / FWHM_PER_SIGMA
    return torch.exp(-2 * math.pi**2 * sigma_pm**2 * (fy**2 + fx**2))


def _lens(q: Mapping[str, Tensor], angle_3: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Return one probe's transfer function, computed on a grid just large enough for it.

    The edge of the aperture is a ramp one step wide. Its squared amplitudes sum to less than its
    area, so the total is the sum of the amplitudes. With the sum of squares, contrast was 1.06
    times too high on a canvas of 2.9 nm, and different on each canvas.
    """
    lam, pixel = wavelength_pm(q["beam_kv"]), float(q["pixel_size_pm"])
    edge = float(q["convergence_mrad"] * 1e-3 / lam)
    step_y, step_x = (1 / (pixel * side) for side in canvas)
    reach = (math.ceil(edge / step_y) + 1, math.ceil(edge / step_x) + 1)
    rows, columns = (scipy.fft.next_fast_len(4 * one + 2, real=True) for one in reach)
    fy = torch.fft.fftfreq(rows, 1 / rows)[:, None] * step_y
    fx = torch.fft.fftfreq(columns, 1 / columns)[None, :] * step_x
    k = torch.hypot(fx, fy)
    aperture = ((edge - k) / max(step_y, step_x) + 0.5).clamp(0, 1)
    fixed = _fixed_phase(q, angle_3, lam, k, torch.atan2(fy, fx))
    intensity = _intensity(q, aperture, fixed, math.pi * lam * k * k)
    spectrum = torch.fft.rfft2(intensity) * (rows * columns / aperture.sum())
    spectrum[0, 0] = 1
    return _placed(spectrum, (2 * reach[0], 2 * reach[1]), canvas)


def _intensity(
    q: Mapping[str, Tensor], aperture: Tensor, fixed: Tensor, per_defocus: Tensor
) -> Tensor:
    """Return the probe's intensity, summed over the spread of focus."""
    sigma_pm = q["focal_spread_nm"] * 1e3 / FWHM_PER_SIGMA
    at_edge = per_defocus[aperture > 0].max()
    total = torch.zeros_like(aperture)
    for node, weight in foci(float(sigma_pm * at_edge)):
        defocus_pm = q["defocus_nm"] * 1e3 + node * sigma_pm
        # Underfocus is C10 < 0, so chi has minus defocus.
        wave = torch.fft.ifft2(torch.polar(aperture, per_defocus * defocus_pm - fixed))
        total = total + weight * (wave.real**2 + wave.imag**2)
    return total


@functools.cache
def _gauss_hermite(count: int) -> tuple[tuple[float, float], ...]:
    node, weight = np.polynomial.hermite_e.hermegauss(count)
    return tuple(zip(node.tolist(), (weight / weight.sum()).tolist(), strict=True))


def _placed(spectrum: Tensor, reach: tuple[int, int], canvas: tuple[int, int]) -> Tensor:
    """Return the frequencies of a spectrum up to `reach` at their places on the canvas."""
    placed = torch.zeros(canvas[0], canvas[1] // 2 + 1, dtype=spectrum.dtype)
    rows, columns = min(reach[0], (canvas[0] - 1) // 2), min(reach[1], canvas[1] // 2) + 1
    placed[: rows + 1, :columns] = spectrum[: rows + 1, :columns]
    if rows:
        placed[-rows:, :columns] = spectrum[-rows:, :columns]
    return placed


def _fixed_phase(
    q: Mapping[str, Tensor], angle_3: Tensor, lam: Tensor, k: Tensor, azimuth: Tensor
) -> Tensor:
    """Return the part of the aberration phase that all foci share; most terms are often 0.

    Coma and trefoil are C21 and C23 of Krivanek's notation, as instruments write them.
    """
    one, two, three = angle_3.unbind()
    k2 = k * k
    third = 2 * math.pi / 3 * lam**2 * 1e3
    phase = torch.zeros_like(k)
    if q["cs_um"].any():
        phase = phase + math.pi / 2 * q["cs_um"] * 1e6 * lam**3 * k2 * k2
    if q["astigmatism_nm"].any():
        stretch = math.pi * lam * q["astigmatism_nm"] * 1e3
        phase = phase + stretch * k2 * torch.cos(2 * (azimuth - one))
    if q["coma_nm"].any():
        phase = phase + third * q["coma_nm"] * k2 * k * torch.cos(azimuth - two)
    if q["trefoil_nm"].any():
        phase = phase + third * q["trefoil_nm"] * k2 * k * torch.cos(3 * (azimuth - three))
    return phase


def _centred(spectrum: Tensor) -> Tensor:
    """Return the probe moved so that its centroid is at the origin, because coma shifts it.

    The phase of the lowest frequencies is the centroid, in units of the canvas.
    """
    rows, columns = spectrum.shape[-2:]
    slope_y = torch.angle(spectrum[:, 1, 0])[:, None, None]
    slope_x = torch.angle(spectrum[:, 0, 1])[:, None, None]
    index_y = torch.fft.fftfreq(rows, 1 / rows)[None, :, None]
    index_x = torch.arange(columns)[None, None, :]
    phase = slope_y * index_y + slope_x * index_x
    return spectrum * torch.polar(torch.ones(()), -phase)


def _blur(q: Mapping[str, Tensor], k: Tensor) -> Tensor:
    """Return the transfer of source, thermal motion and the response of atoms."""
    inner_rad = q["detector_inner_mrad"].clamp_min(10) * 1e-3
    atom_pm = ATOM_SHARE * wavelength_pm(q["beam_kv"]) / inner_rad
    variance = (q["source_fwhm_pm"] / FWHM_PER_SIGMA) ** 2 + THERMAL_PM**2
    return torch.exp(-2 * math.pi**2 * variance * k**2 - atom_pm * k)
