"""The probe: identities of a lens, and what multislice images say about an atom's response."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manybeam.data.simulation.optics import collected, foci, lens, transfer, wavelength_pm

PERFECT = {
    "pixel_size_pm": 16.0,
    "beam_kv": 60.0,
    "convergence_mrad": 30.0,
    "focal_spread_nm": 0.0,
    "defocus_nm": 0.0,
    "cs_um": 0.0,
    "astigmatism_nm": 0.0,
    "coma_nm": 0.0,
    "trefoil_nm": 0.0,
    "detector_inner_mrad": 70.0,
    "detector_outer_mrad": 200.0,
    "source_fwhm_pm": 0.0,
}
STRAIGHT = (0.0, 0.0, 0.0)
Angles = tuple[float, float, float]


def _draw(**changes: float) -> dict[str, Tensor]:
    return {name: torch.tensor([value]) for name, value in (PERFECT | changes).items()}


def _lens(
    canvas: tuple[int, int] = (160, 160), angle: Angles = STRAIGHT, **changes: float
) -> Tensor:
    return lens(_draw(**changes), torch.tensor([angle]), canvas)[0]


def _probe(angle: Angles = STRAIGHT, **changes: float) -> np.ndarray:
    """The probe's intensity, its origin in the middle of a 200 x 200 px canvas."""
    spectrum = _lens((200, 200), angle, **changes)
    return np.fft.fftshift(np.fft.irfft2(spectrum.numpy(), s=(200, 200)))


def _frequency(canvas: tuple[int, int], pixel_pm: float) -> np.ndarray:
    """Spatial frequency of each element of a transfer function, in 1/pm."""
    fy, fx = np.fft.fftfreq(canvas[0])[:, None], np.fft.rfftfreq(canvas[1])[None]
    return np.hypot(fy, fx) / pixel_pm


def _edge(**changes: float) -> float:
    """Spatial frequency at the edge of the aperture, in 1/pm."""
    q = _draw(**changes)
    return float(q["convergence_mrad"] * 1e-3 / wavelength_pm(q["beam_kv"]))


def _circle(frequency: np.ndarray, edge: float) -> np.ndarray:
    """Overlap of two discs: the transfer function of a lens without aberrations."""
    x = np.clip(frequency / (2 * edge), 0, 1)
    return np.asarray(2 / math.pi * (np.arccos(x) - x * np.sqrt(1 - x * x)))


@pytest.mark.parametrize(
    "canvas",
    [
        pytest.param((90, 90), id="small"),
        pytest.param((180, 187), id="oblong"),
        pytest.param((512, 300), id="large"),
    ],
)
def test_a_perfect_lens_transfers_as_its_round_aperture_does(canvas: tuple[int, int]) -> None:
    expected = _circle(_frequency(canvas, 16.0), _edge())
    assert np.abs(_lens(canvas).numpy() - expected).max() < 0.01


@pytest.mark.parametrize("defocus_nm", [0.0, 6.0])
def test_the_contrast_does_not_depend_on_the_size_of_the_canvas(defocus_nm: float) -> None:
    small = _lens((150, 150), defocus_nm=defocus_nm)
    large = _lens((600, 600), defocus_nm=defocus_nm)
    assert (large[::4, ::4] - small).abs().max() < 0.01


def test_what_a_pixel_is_too_coarse_for_is_left_out_and_not_folded_back() -> None:
    coarse = _lens((100, 100), pixel_size_pm=40.0)
    fine = _lens((400, 400), pixel_size_pm=10.0)
    assert (coarse[:50, :50] - fine[:50, :50]).abs().max() < 1e-5


def test_a_perfect_probe_is_as_wide_as_an_airy_disc() -> None:
    falling = _probe(pixel_size_pm=4.0)[100, 100:120]
    half_px = np.interp(-0.5, -falling / falling[0], np.arange(20))
    assert 2 * half_px * 4.0 == pytest.approx(0.515 / _edge(), rel=0.02)


@given(
    defocus_nm=st.floats(-10, 10),
    coma_nm=st.floats(0, 100),
    astigmatism_nm=st.floats(0, 4),
    azimuth=st.floats(0, 2 * math.pi),
)
@settings(max_examples=20)
def test_a_probe_keeps_its_electrons_and_has_none_to_owe(
    defocus_nm: float, coma_nm: float, astigmatism_nm: float, azimuth: float
) -> None:
    aberrations = {"defocus_nm": defocus_nm, "coma_nm": coma_nm, "astigmatism_nm": astigmatism_nm}
    probe = _probe((azimuth, azimuth, 0.0), **aberrations)
    assert probe.sum() == pytest.approx(1, abs=1e-5)
    assert probe.min() > -0.01 * probe.max()


@given(azimuth=st.floats(0, 2 * math.pi), defocus_nm=st.floats(-8, 8))
@settings(max_examples=20)
@pytest.mark.parametrize(
    ("name", "amount", "place", "fold"),
    [
        pytest.param("astigmatism_nm", 4.0, 0, 2, id="astigmatism"),
        pytest.param("coma_nm", 60.0, 1, 1, id="coma"),
        pytest.param("trefoil_nm", 60.0, 2, 3, id="trefoil"),
    ],
)
def test_an_aberration_repeats_after_its_own_share_of_a_turn(
    name: str, amount: float, place: int, fold: int, azimuth: float, defocus_nm: float
) -> None:
    angle = [0.0, 0.0, 0.0]
    angle[place] = azimuth
    once = _lens((120, 120), (angle[0], angle[1], angle[2]), **{name: amount})
    angle[place] += 2 * math.pi / fold
    again = _lens((120, 120), (angle[0], angle[1], angle[2]), **{name: amount})
    assert (once - again).abs().max() < 1e-3


@given(azimuth=st.floats(0, 2 * math.pi))
@settings(max_examples=20)
def test_turning_every_aberration_by_90_degrees_turns_the_probe(azimuth: float) -> None:
    aberrations = {"astigmatism_nm": 3.0, "coma_nm": 60.0, "trefoil_nm": 40.0, "defocus_nm": 2.0}
    before = _probe((azimuth, azimuth, azimuth), **aberrations)
    turned = azimuth + math.pi / 2
    after = _probe((turned, turned, turned), **aberrations)
    # Azimuths run from x (columns) to y (rows), which is downward.
    expected = np.roll(np.rot90(before, -1), 1, axis=1)
    assert np.abs(after - expected).max() < 0.01 * before.max()


def test_without_spherical_aberration_over_and_underfocus_look_alike() -> None:
    under, over = _lens(defocus_nm=5.0), _lens(defocus_nm=-5.0)
    assert (under - over).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("cs_um", "sharper_nm"),
    [pytest.param(20.0, 6.0, id="positive"), pytest.param(-20.0, -6.0, id="negative")],
)
def test_underfocus_balances_positive_spherical_aberration(cs_um: float, sharper_nm: float) -> None:
    balanced = _probe(cs_um=cs_um, defocus_nm=sharper_nm).max()
    added = _probe(cs_um=cs_um, defocus_nm=-sharper_nm).max()
    assert balanced > 1.5 * added


def _shift_pm(spectrum: Tensor) -> float:
    """Distance of the probe's centroid along x, from the phase of the lowest frequency."""
    return abs(float(torch.angle(spectrum[0, 1]))) * 16.0 * 160 / (2 * math.pi)


@pytest.mark.parametrize("coma_nm", [20.0, 60.0])
def test_coma_moves_the_probe_by_a_third_of_it_times_the_aperture_squared(coma_nm: float) -> None:
    # The mean slope of the aberration function over the aperture: C21 alpha^2 / 3.
    expected_pm = coma_nm * 1e3 * 0.030**2 / 3
    assert _shift_pm(_lens(coma_nm=coma_nm)) == pytest.approx(expected_pm, rel=0.08)


def test_an_image_is_centred_again_after_coma_moved_the_probe() -> None:
    centred = transfer(_draw(coma_nm=60.0), torch.zeros(1, 3), (160, 160))[0]
    assert _shift_pm(centred) < 0.1


def test_a_frames_probe_does_not_depend_on_the_frames_beside_it() -> None:
    both = {
        name: torch.tensor([value, 2 * value + 1])
        for name, value in (PERFECT | {"coma_nm": 9.0}).items()
    }
    alone = transfer(_draw(coma_nm=9.0), torch.ones(1, 3), (130, 140))
    assert torch.equal(transfer(both, torch.ones(2, 3), (130, 140))[0], alone[0])


@pytest.mark.parametrize(
    ("beam_kv", "convergence_mrad", "focal_spread_nm"),
    [
        pytest.param(60.0, 30.0, 4.0, id="60-kV"),
        pytest.param(200.0, 30.0, 5.0, id="200-kV"),
        pytest.param(300.0, 35.0, 6.0, id="300-kV"),
    ],
)
def test_a_spread_of_focus_is_a_mean_over_many_foci(
    beam_kv: float, convergence_mrad: float, focal_spread_nm: float
) -> None:
    optics = {"beam_kv": beam_kv, "convergence_mrad": convergence_mrad, "pixel_size_pm": 10.0}
    sigma_nm = focal_spread_nm / 2.3548
    steps = np.linspace(-4, 4, 81)
    weights = np.exp(-(steps**2) / 2) / np.exp(-(steps**2) / 2).sum()
    mean = sum(
        w * _lens(defocus_nm=float(s * sigma_nm), **optics)
        for s, w in zip(steps, weights, strict=True)
    )
    assert (_lens(focal_spread_nm=focal_spread_nm, **optics) - mean).abs().max() < 0.005


@given(st.floats(0, 200))
def test_the_foci_have_mean_zero_and_variance_one(phase_spread: float) -> None:
    node, weight = np.array(foci(phase_spread)).T
    assert weight.sum() == pytest.approx(1)
    assert (weight * node).sum() == pytest.approx(0, abs=1e-9)
    assert (weight * node**2).sum() == pytest.approx(float(phase_spread > 0))


# What multislice with frozen phonons (abTEM 1.0.11, 0.08 A rms) leaves of graphene's two rings
# after its probe, 1/213 pm and 1/123 pm; from tests/benchmarks/abtem_rings.py.
@pytest.mark.parametrize(
    ("beam_kv", "convergence_mrad", "inner_mrad", "first", "second"),
    [
        pytest.param(60.0, 30.0, 40.0, 0.854, 0.756, id="60-kV-40-mrad"),
        pytest.param(60.0, 30.0, 55.0, 0.870, 0.819, id="60-kV-55-mrad"),
        pytest.param(60.0, 30.0, 70.0, 0.924, 0.894, id="60-kV-70-mrad"),
        pytest.param(60.0, 30.0, 90.0, 0.947, 0.934, id="60-kV-90-mrad"),
        pytest.param(80.0, 25.0, 50.0, 0.879, 0.847, id="80-kV-50-mrad"),
        pytest.param(80.0, 25.0, 80.0, 0.949, 0.934, id="80-kV-80-mrad"),
    ],
)
def test_atoms_respond_as_in_multislice_images(
    beam_kv: float, convergence_mrad: float, inner_mrad: float, first: float, second: float
) -> None:
    optics = {"beam_kv": beam_kv, "convergence_mrad": convergence_mrad}
    q = _draw(detector_inner_mrad=inner_mrad, pixel_size_pm=20.0, **optics)
    whole, probe = (made(q, torch.zeros(1, 3), (400, 400))[0, 0].abs() for made in (transfer, lens))
    for period_pm, expected in ((213.04, first), (123.0, second)):
        thermal = math.exp(-2 * (math.pi * 8.0 / period_pm) ** 2)
        left = np.interp(400 * 20.0 / period_pm, np.arange(100), (whole / probe)[:100].numpy())
        assert left / thermal == pytest.approx(expected, rel=0.08)


def test_the_usual_detector_collects_a_share_of_one() -> None:
    assert float(collected(_draw())) == pytest.approx(1)


@pytest.mark.parametrize(
    "less",
    [
        pytest.param({"detector_inner_mrad": 80.0}, id="larger-hole"),
        pytest.param({"detector_outer_mrad": 150.0}, id="smaller-rim"),
        pytest.param({"beam_kv": 80.0}, id="faster-electrons"),
    ],
)
def test_fewer_electrons_reach(less: dict[str, float]) -> None:
    assert float(collected(_draw(**less))) < 1


@pytest.mark.parametrize(
    ("beam_kv", "picometres"),
    [
        pytest.param(30.0, 6.979, id="30"),
        pytest.param(80.0, 4.176, id="80"),
        pytest.param(100.0, 3.701, id="100"),
        pytest.param(120.0, 3.349, id="120"),
    ],
)
def test_the_wavelength_is_that_of_the_tables(beam_kv: float, picometres: float) -> None:
    assert float(wavelength_pm(torch.tensor(beam_kv))) == pytest.approx(picometres, abs=1e-3)
