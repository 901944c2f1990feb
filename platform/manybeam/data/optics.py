"""The probe: how far a point is smeared by lens, energy spread, source and thermal motion.

Axis letters: b frame of a batch, y and x spatial frequency of the canvas.

Source: E. J. Kirkland, Advanced Computing in Electron Microscopy, 2nd ed. (2010), chapters 2 and
3, for the wavelength and the aberration function; incoherent imaging as I = object * probe.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

THERMAL_PM = 8.0  # rms displacement in projection
BOHR_PM = 52.9
REST_KV = 511.0  # rest energy of the electron
CARBON = 6
# Gaussian width of one atom's response over wavelength / inner angle: 17 pm at 60 kV and 40 mrad,
# 10 pm at 70 mrad. One width for both made high-angle contrast 0.87 of a multislice one.
ATOM_SHARE = 0.14
FWHM_PER_SIGMA = 2.354820045
# Three-point Gauss-Hermite quadrature over a normal distribution: (node in sigma, weight).
FOCI = ((-math.sqrt(3), 1 / 6), (0.0, 2 / 3), (math.sqrt(3), 1 / 6))


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
    fx = torch.fft.fftfreq(canvas[1])[None, None, :] / q["pixel_size_pm"]
    lam = wavelength_pm(q["beam_kv"])
    k = torch.hypot(fx, fy)
    step = 1 / (q["pixel_size_pm"] * max(canvas))
    aperture = torch.sigmoid((q["convergence_mrad"] * 1e-3 / lam - k) / (0.5 * step))
    fixed = _fixed_phase(q, angle_b3[..., None, None], lam, k, torch.atan2(fy, fx))
    sigma_pm = q["focal_spread_nm"] * 1e3 / FWHM_PER_SIGMA
    intensity, k2 = torch.zeros(()), k * k
    for node, weight in FOCI:
        defocus_pm = q["defocus_nm"] * 1e3 + node * sigma_pm
        # Underfocus is C10 < 0, so chi holds minus defocus.
        phase = fixed - math.pi * lam * defocus_pm * k2
        wave = torch.fft.ifft2(torch.polar(aperture, -phase))
        intensity = intensity + weight * (wave.real**2 + wave.imag**2)
    intensity = intensity / intensity.sum((1, 2), keepdim=True)
    half = canvas[1] // 2 + 1
    return _centred(torch.fft.rfft2(intensity)) * _blur(q, k[..., :half])


def atom_blur(draw: Mapping[str, Tensor], canvas: tuple[int, int]) -> Tensor:
    """Return the extra transfer function of the atoms of the truth: motion, beam spread."""
    q = {name: draw[name][:, None, None] for name in ("atom_width_pm", "pixel_size_pm")}
    fy = torch.fft.fftfreq(canvas[0])[None, :, None] / q["pixel_size_pm"]
    fx = torch.fft.rfftfreq(canvas[1])[None, None, :] / q["pixel_size_pm"]
    sigma_pm = q["atom_width_pm"] / FWHM_PER_SIGMA
    return torch.exp(-2 * math.pi**2 * sigma_pm**2 * (fy**2 + fx**2))


def _fixed_phase(
    q: Mapping[str, Tensor], angle_b3: Tensor, lam: Tensor, k: Tensor, azimuth: Tensor
) -> Tensor:
    """Return the part of the aberration phase that all foci share; most terms are often 0."""
    one, two, three = angle_b3.unbind(1)
    k2 = k * k
    third = 2 * math.pi / 3 * lam**2 * 1e3
    phase = torch.zeros(())
    if q["cs_um"].any():
        phase = phase + math.pi / 2 * q["cs_um"] * 1e6 * lam**3 * k2 * k2
    if q["astigmatism_nm"].any():
        stretch = math.pi * lam * q["astigmatism_nm"] * 1e3
        phase = phase + stretch * k2 * torch.cos(2 * (azimuth - one))
    if q["coma_nm"].any():
        phase = phase + 3 * third * q["coma_nm"] * k2 * k * torch.cos(azimuth - two)
    if q["trefoil_nm"].any():
        phase = phase + third * q["trefoil_nm"] * k2 * k * torch.cos(3 * (azimuth - three))
    return phase


def _centred(spectrum: Tensor) -> Tensor:
    """Return the probe moved so that its centroid is at the origin: coma shifts what is seen.

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
    """Return the Gaussian of source, thermal motion and the atoms' own response."""
    inner_rad = q["detector_inner_mrad"].clamp_min(10) * 1e-3
    atom_pm = ATOM_SHARE * wavelength_pm(q["beam_kv"]) / inner_rad
    variance = (q["source_fwhm_pm"] / FWHM_PER_SIGMA) ** 2 + THERMAL_PM**2 + atom_pm**2
    return torch.exp(-2 * math.pi**2 * variance * k**2)
