"""The simulator: exact truth, seeds that reproduce, physics that behaves as physics does."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage
from scipy.signal import lfilter

from manybeam.data.frames import FrameSet
from manybeam.data.simulation.optics import transfer, wavelength_pm
from manybeam.data.simulation.recording import _afterglow, _decaying
from manybeam.data.simulation.simulate import simulate, simulate_into
from manybeam.data.simulation.typical import typical
from manybeam.errors import Conflict, InvalidInput, TooLarge, UnknownFrameSet
from manybeam.learn.scoring.classical import detect
from manybeam.learn.scoring.scores import score_frames
from manybeam.spec import Condition, Library, Policy, Range

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
NOMINAL = LIBRARY.condition("graphene-60kv-nominal")


def _condition(**groups: object) -> Condition:
    """A noiseless sheet without defects or distortions, changed by `groups`."""
    plain: dict[str, dict[str, object]] = {
        "sample": {
            "structure": "graphene",
            "vacancy_fraction": 0,
            "silicon_fraction": 0,
            "nitrogen_fraction": 0,
            "hole_probability": 0,
            "strain": 0,
        },
        "scan": {"row_jitter_pm": 0, "pixel_size_pm": 12},
        "state": {"background": 0, "contamination": 0},
        "detector": {"readout_e": 0},
    }
    for group, fields in groups.items():
        if isinstance(fields, dict):
            plain[group] = {**plain.get(group, {}), **fields}
    dose = groups.get("dose_e_per_a2", 1e9)
    return Condition.model_validate({"id": "test", "dose_e_per_a2": dose, **plain})


def _centroids(frame: np.ndarray, truth: np.ndarray, half: int) -> np.ndarray:
    """Intensity-weighted centroid around each true place that lies well inside."""
    side = frame.shape[0]
    inside = ((truth[:, :2] > half + 1) & (truth[:, :2] < side - half - 2)).all(axis=1)
    found = []
    for y, x, _ in truth[inside]:
        top, left = round(float(y)) - half, round(float(x)) - half
        window = frame[top : top + 2 * half + 1, left : left + 2 * half + 1]
        dy, dx = ndimage.center_of_mass(window - window.min())
        found.append((top + dy - y, left + dx - x))
    return np.array(found)


def test_the_same_seed_gives_equal_frames_and_truth() -> None:
    one, two = simulate(NOMINAL, 3, seed=4), simulate(NOMINAL, 3, seed=4)
    assert np.array_equal(one.frames_nyx, two.frames_nyx)
    assert all(np.array_equal(a, b) for a, b in zip(one.truth, two.truth, strict=True))


def test_more_frames_do_not_change_the_first_ones() -> None:
    few, many = simulate(NOMINAL, 2, seed=4), simulate(NOMINAL, 20, seed=4)
    assert np.array_equal(few.frames_nyx, many.frames_nyx[:2])


@pytest.mark.parametrize("name", ["graphene-general", "pt-nominal", "mos2-general"])
def test_a_frame_of_a_policy_does_not_depend_on_the_others(name: str) -> None:
    policy = LIBRARY.policy(name)
    few = simulate(policy, 2, seed=4, shape=(64, 64))
    many = simulate(policy, 20, seed=4, shape=(64, 64))
    assert np.array_equal(few.frames_nyx, many.frames_nyx[:2])
    assert all(np.array_equal(a, b) for a, b in zip(few.truth, many.truth, strict=False))


def test_another_seed_gives_other_frames() -> None:
    one, two = simulate(NOMINAL, 1, seed=1), simulate(NOMINAL, 1, seed=2)
    assert not np.array_equal(one.frames_nyx, two.frames_nyx)


def test_an_atom_is_seen_where_the_truth_says() -> None:
    made = simulate(_condition(), 4, seed=0)
    offsets = np.concatenate(
        [_centroids(f, t, 5) for f, t in zip(made.frames_nyx, made.truth, strict=True)]
    )
    assert np.abs(offsets.mean(axis=0)).max() < 0.05
    assert offsets.std() < 0.5


@pytest.mark.parametrize(
    "scan",
    [
        pytest.param({"drift_pm_per_row": 2.0}, id="drift"),
        pytest.param({"flyback_pm": 150.0}, id="fly-back"),
    ],
)
def test_the_truth_moves_with_smooth_distortions(scan: dict[str, float]) -> None:
    made = simulate(_condition(scan=scan), 4, seed=0)
    offsets = np.concatenate(
        [_centroids(f, t, 5) for f, t in zip(made.frames_nyx, made.truth, strict=True)]
    )
    assert np.abs(offsets.mean(axis=0)).max() < 0.06


@pytest.mark.parametrize(
    "scan",
    [
        pytest.param({"drift_pm_per_row": 6.0}, id="drift"),
        pytest.param({"drift_pm_per_row": -6.0}, id="drift-back"),
        pytest.param({"flyback_pm": 2000.0}, id="fly-back"),
    ],
)
def test_the_sample_goes_on_as_far_as_the_beam_does(scan: dict[str, float]) -> None:
    made = simulate(_condition(scan=scan), 4, seed=0, shape=(256, 256))
    found = [detect(frame, 12.0) for frame in made.frames_nyx]
    scores = score_frames(found, made.truth, [12.0] * 4, shapes=[(256, 256)] * 4)
    assert scores.precision > 0.99


def test_an_atom_near_the_start_of_a_row_is_seen_where_the_truth_says() -> None:
    imaging = _condition(
        sample={"silicon_fraction": 0.02}, scan={"flyback_pm": 200.0}, dose_e_per_a2=1e9
    )
    made = simulate(imaging, 12, seed=0)
    found = 0
    for frame, truth in zip(made.frames_nyx, made.truth, strict=True):
        near = (truth[:, 2] == 14) & (truth[:, 1] > 4) & (truth[:, 1] < 30)
        near &= (truth[:, 0] > 4) & (truth[:, 0] < 123)
        for y, x, _ in truth[near]:
            window = frame[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4]
            dy, dx = np.unravel_index(window.argmax(), window.shape)
            assert abs(round(y) - 3 + dy - y) < 1.5
            assert abs(round(x) - 3 + dx - x) < 1.5
            found += 1
    assert found >= 5


def test_a_dose_left_open_is_what_current_and_dwell_time_make() -> None:
    made = {"optics": {"beam_current_pa": 60}, "scan": {"dwell_us": 16, "pixel_size_pm": 7.8}}
    sample = {"structure": "graphene"}
    open_dose = Condition.model_validate({"id": "test", "sample": sample, **made})
    assert typical(open_dose)["dose_e_per_a2"] == pytest.approx(9.85e5, rel=1e-3)


def test_each_frame_of_a_policy_has_the_dose_of_its_own_current_and_pixel() -> None:
    scan = {"dwell_us": 16, "pixel_size_pm": [8, 32]}
    optics = {"beam_current_pa": 60}
    policy = Policy.model_validate(
        {"id": "test", "sample": {"structure": "graphene"}, "optics": optics, "scan": scan}
    )
    made = simulate(policy, 8, seed=0, shape=(64, 64))
    # A pixel gets 60 pA x 16 us whatever its size.
    means = made.frames_nyx.mean(axis=(1, 2))
    assert means.max() < 2 * means.min()


@pytest.mark.parametrize(
    ("scan", "shape"),
    [
        pytest.param({}, (10_000, 10_000), id="frame"),
        pytest.param({"drift_pm_per_row": 50}, (8_000, 500), id="drift"),
    ],
)
def test_more_pixels_than_the_memory_is_meant_for_are_refused(
    scan: dict[str, float], shape: tuple[int, int]
) -> None:
    with pytest.raises(TooLarge, match="px with margins"):
        simulate(_condition(scan=scan), 1, seed=0, shape=shape)


def test_a_smaller_inner_angle_collects_more_electrons() -> None:
    high = simulate(_condition(), 1, seed=0).frames_nyx.mean()
    medium = _condition(detector={"detector_inner_mrad": 40})
    assert simulate(medium, 1, seed=0).frames_nyx.mean() / high == pytest.approx(2.5, rel=0.1)


def test_more_signal_comes_from_a_thicker_support() -> None:
    thin = LIBRARY.condition("ptnc-sim-nominal")
    assert thin.sample.support_nm == 75
    sample = thin.sample.model_copy(update={"support_nm": 150.0})
    thick = thin.model_copy(update={"sample": sample})
    state = thin.state.model_copy(update={"background": 0.0})
    means = [
        simulate(one.model_copy(update={"state": state}), 1, seed=2).frames_nyx.mean()
        for one in (thin, thick)
    ]
    assert means[1] / means[0] == pytest.approx(2, rel=0.05)


@pytest.mark.slow
@pytest.mark.real
def test_the_support_has_the_texture_of_the_measured_frames(shared_data: Path) -> None:
    """Power between 0.3 and 3 nm over the local mean, within a factor of 2 of the median."""
    real = [tifffile.imread(path) for path in sorted((shared_data / "frames/ptnc").glob("*.tif"))]
    measured = np.median([_texture(frame - 1.8e5) for frame in real], axis=0)
    made = simulate(LIBRARY.condition("ptnc-sim-nominal"), 4, seed=5, shape=(512, 512))
    simulated = np.median([_texture(frame) for frame in made.frames_nyx], axis=0)
    assert np.abs(np.log2(simulated / measured)).max() < 1


def _texture(frame: np.ndarray) -> np.ndarray:
    """Standard deviation in three bands, relative to the local mean, where there is a support."""
    blurred = [ndimage.gaussian_filter(frame.astype(float), sigma) for sigma in (1.5, 3, 6, 12)]
    support = blurred[3] > 0.5 * np.percentile(blurred[3], 80)
    support = ndimage.binary_erosion(support, iterations=20)
    bands = [(fine - coarse) / blurred[3] for fine, coarse in itertools.pairwise(blurred)]
    return np.array([band[support].std() for band in bands])


@pytest.mark.real
def test_mos2_has_the_noise_and_skewness_of_the_measured_frames(shared_data: Path) -> None:
    """Share of the variance that is noise, within a fifth; skewness, within 0.25."""
    real = [np.load(path) for path in sorted((shared_data / "frames/mos2").glob("*.npy"))]
    made = simulate(LIBRARY.condition("mos2-60kv-nominal"), 6, seed=5, shape=(256, 256))
    measured, simulated = (
        np.median([_look(one) for one in ones], 0) for ones in (real, made.frames_nyx)
    )
    assert simulated[0] / measured[0] == pytest.approx(1, abs=0.2)
    assert simulated[1] == pytest.approx(measured[1], abs=0.25)


def _look(frame: np.ndarray) -> tuple[float, float]:
    """Noise, from the spectrum where no lattice reaches, as a share of the variance; skewness."""
    plain = (frame - frame.mean()) / frame.std()
    frequency = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, frame.shape), indexing="ij"))
    power = np.abs(np.fft.fft2(plain)) ** 2 / plain.size
    noise = np.median(power[(frequency > 0.35) & (frequency < 0.5)]) / np.log(2)
    return float(noise), float((plain**3).mean())


def test_coma_does_not_move_the_atoms_from_their_truth() -> None:
    made = simulate(_condition(optics={"coma_nm": 20}), 4, seed=0)
    offsets = np.concatenate(
        [_centroids(f, t, 5) for f, t in zip(made.frames_nyx, made.truth, strict=True)]
    )
    assert np.abs(offsets.mean(axis=0)).max() < 0.1


def test_the_noise_is_that_of_counted_electrons() -> None:
    made = simulate(_condition(sample={"hole_probability": 0}, dose_e_per_a2=1e6), 1, seed=0)
    clean = simulate(_condition(dose_e_per_a2=1e10), 1, seed=0).frames_nyx[0] / 1e4
    variance = float(((made.frames_nyx[0] - clean) ** 2).mean())
    assert variance == pytest.approx(float(clean.mean()), rel=0.05)


def test_ten_times_the_dose_gives_ten_times_the_counts() -> None:
    one = simulate(_condition(dose_e_per_a2=1e8), 1, seed=0).frames_nyx.mean()
    ten = simulate(_condition(dose_e_per_a2=1e9), 1, seed=0).frames_nyx.mean()
    assert ten / one == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize("defocus_nm", [-6.0, 6.0])
def test_defocus_lowers_the_contrast(defocus_nm: float) -> None:
    sharp = simulate(_condition(), 1, seed=0).frames_nyx[0]
    blurred = simulate(_condition(optics={"defocus_nm": defocus_nm}), 1, seed=0).frames_nyx[0]
    assert blurred.std() / blurred.mean() < 0.8 * sharp.std() / sharp.mean()


def test_the_probe_keeps_all_electrons() -> None:
    q = {name: torch.tensor([value]) for name, value in _draw().items()}
    assert float(transfer(q, torch.zeros(1, 3), (64, 80))[0, 0, 0].abs()) == pytest.approx(1)


def _draw() -> dict[str, float]:
    return {
        "pixel_size_pm": 12.0,
        "beam_kv": 60.0,
        "convergence_mrad": 30.0,
        "focal_spread_nm": 4.0,
        "defocus_nm": 2.0,
        "cs_um": 1.0,
        "astigmatism_nm": 1.0,
        "coma_nm": 10.0,
        "trefoil_nm": 10.0,
        "detector_inner_mrad": 70.0,
        "source_fwhm_pm": 60.0,
    }


@pytest.mark.parametrize(
    ("beam_kv", "picometres"),
    [
        pytest.param(60.0, 4.866, id="60"),
        pytest.param(200.0, 2.508, id="200"),
        pytest.param(300.0, 1.969, id="300"),
    ],
)
def test_the_wavelength_is_that_of_the_tables(beam_kv: float, picometres: float) -> None:
    assert float(wavelength_pm(torch.tensor(beam_kv))) == pytest.approx(picometres, abs=1e-3)


def test_the_density_of_atoms_is_that_of_graphene() -> None:
    made = simulate(_condition(), 8, seed=0)
    area_nm2 = (128 * 0.012) ** 2
    assert np.mean([len(t) for t in made.truth]) / area_nm2 == pytest.approx(38.2, rel=0.03)


def test_dopants_carry_their_atomic_number() -> None:
    made = simulate(_condition(sample={"silicon_fraction": 0.3}), 1, seed=0)
    assert set(np.unique(made.truth[0][:, 2])) == {6.0, 14.0}


def test_a_policy_draws_a_pixel_size_for_each_frame() -> None:
    made = simulate(LIBRARY.policy("graphene-general"), 12, seed=0)
    assert len(np.unique(made.pixel_size_pm)) == 12
    assert made.pixel_size_pm.min() >= 10
    assert made.pixel_size_pm.max() <= 26


def test_heavy_atoms_stand_on_the_support_and_not_in_vacuum() -> None:
    made = simulate(LIBRARY.condition("ptnc-sim-nominal"), 6, seed=1)
    for frame, truth in zip(made.frames_nyx, made.truth, strict=True):
        smooth = ndimage.gaussian_filter(frame, 3)
        y, x = np.clip(truth[:, :2].round().astype(int), 0, 255).T
        assert (smooth[y, x] > 0.1 * np.percentile(smooth, 90)).all()


def test_heavy_atoms_are_brighter_than_what_surrounds_them() -> None:
    made = simulate(LIBRARY.condition("ptnc-sim-nominal"), 4, seed=1)
    gains = []
    for frame, truth in zip(made.frames_nyx, made.truth, strict=True):
        band = ndimage.gaussian_filter(frame, 2) - ndimage.gaussian_filter(frame, 8)
        y, x = np.clip(truth[:, :2].round().astype(int), 0, 255).T
        gains.append((band[y, x] / band.std()).mean())
    assert np.mean(gains) > 2


@pytest.mark.parametrize("name", sorted([*LIBRARY.conditions, *LIBRARY.policies]))
def test_everything_in_the_zoo_can_be_simulated(name: str) -> None:
    imaging = LIBRARY.policies.get(name) or LIBRARY.condition(name)
    made = simulate(imaging, 1, seed=0, shape=(64, 48))
    assert made.frames_nyx.shape == (1, 64, 48)
    assert made.frames_nyx.dtype == np.float32
    assert np.isfinite(made.frames_nyx).all()


@pytest.mark.parametrize(
    ("structure", "shape"),
    [
        pytest.param("graphene", (1, 1), id="one-pixel"),
        pytest.param("mos2", (7, 1500), id="seven-rows"),
        pytest.param("heavy_atoms", (33, 47), id="odd"),
        pytest.param("grain_boundary", (200, 3), id="three-columns"),
    ],
)
def test_a_frame_may_have_any_shape(structure: str, shape: tuple[int, int]) -> None:
    condition = Condition.model_validate({"id": "a", "sample": {"structure": structure}})
    made = simulate(condition, 1, seed=0, shape=shape)
    assert made.frames_nyx.shape == (1, *shape)
    assert np.isfinite(made.frames_nyx).all()


def test_frames_go_straight_into_a_frameset(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = simulate_into(
        str(tmp_path / "set"), NOMINAL, 20, seed=3, progress=lambda *at: seen.append(at)
    )
    again = FrameSet.open(str(tmp_path / "set"))
    assert again.digest == made.digest
    assert np.array_equal(again.frames(), simulate(NOMINAL, 20, seed=3).frames_nyx)
    assert seen[-1] == (20, 20)


def _written(folder: Path) -> set[str]:
    """The folders below that hold anything."""
    return {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()}


def test_nobody_sees_half_of_the_frames(tmp_path: Path) -> None:
    url = str(tmp_path / "set")

    def look(done: int, count: int) -> None:
        with pytest.raises(UnknownFrameSet):
            FrameSet.open(url)

    assert len(simulate_into(url, NOMINAL, 20, seed=3, progress=look)) == 20
    assert len(FrameSet.open(url)) == 20


def test_a_set_stays_whole_until_the_one_that_replaces_it_is(tmp_path: Path) -> None:
    url = str(tmp_path / "set")
    old = simulate_into(url, NOMINAL, 2, seed=1)

    def fail(done: int, count: int) -> None:
        assert FrameSet.open(url).digest == old.digest
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        simulate_into(url, NOMINAL, 20, seed=2, progress=fail, overwrite=True)
    FrameSet.open(url).verify()
    assert len(_written(tmp_path / "set" / "made")) == 1


def test_a_set_that_was_replaced_is_the_new_one_and_nothing_of_the_old(tmp_path: Path) -> None:
    url = str(tmp_path / "set")
    simulate_into(url, NOMINAL, 6, seed=1)
    new = simulate_into(url, NOMINAL, 2, seed=2, overwrite=True)
    again = FrameSet.open(url)
    again.verify()
    assert (again.digest, len(again)) == (new.digest, 2)
    assert len(_written(tmp_path / "set" / "made")) == 1


def test_a_set_that_must_not_be_replaced_is_kept(tmp_path: Path) -> None:
    url = str(tmp_path / "set")
    old = simulate_into(url, NOMINAL, 2, seed=1)
    with pytest.raises(Conflict, match="there is already a FrameSet"):
        simulate_into(url, NOMINAL, 2, seed=2)
    assert FrameSet.open(url).digest == old.digest


def test_a_set_keeps_the_crystal_it_was_simulated_from(tmp_path: Path) -> None:
    lsmo = LIBRARY.condition("lsmo-200kv-110")
    simulate_into(str(tmp_path / "set"), lsmo, 1, seed=0, shape=(48, 48))
    again = FrameSet.open(str(tmp_path / "set"))
    assert again.condition == lsmo
    assert again.condition.digest == lsmo.digest


def test_what_is_unknown_is_filled_only_for_the_simulation() -> None:
    condition = Condition.model_validate({"id": "a", "sample": {"structure": "graphene"}})
    assert condition.dose_e_per_a2 is None
    assert typical(condition)["dose_e_per_a2"] == 1.2e6


@pytest.mark.parametrize(
    ("imaging", "count", "shape"),
    [
        pytest.param(Condition(id="unknown"), 1, None, id="no-structure"),
        pytest.param(NOMINAL, 0, None, id="no-frames"),
        pytest.param(NOMINAL, 1, (0, 5), id="no-rows"),
        pytest.param(Policy(id="unknown"), 1, None, id="policy-without-structure"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    imaging: Condition | Policy, count: int, shape: tuple[int, int] | None
) -> None:
    with pytest.raises(InvalidInput):
        simulate(imaging, count, seed=0, shape=shape)


def test_a_scintillator_glows_before_a_row_starts() -> None:
    tailed = _afterglow(torch.full((1, 4, 32), 7.0), torch.tensor([2.0]))
    assert tailed.numpy() == pytest.approx(7.0, rel=1e-5)


def test_heavy_atoms_of_a_policy_are_of_whole_elements() -> None:
    policy = LIBRARY.policy("pt-nominal")
    made = simulate(policy, 12, seed=0, shape=(64, 64))
    numbers = np.concatenate(made.truth)[:, 2]
    assert policy.sample.atomic_number == Range(low=74, high=79)
    assert set(numbers) <= {74, 75, 76, 77, 78, 79}


def test_the_tail_of_a_scintillator_leaves_its_row_at_the_end() -> None:
    counts = torch.zeros(1, 2, 64)
    counts[0, 0, -1] = 1.0
    tailed = _afterglow(counts, torch.tensor([3.0]))
    assert tailed[0, 0, :32].abs().max() < 1e-5
    assert tailed[0, 0, -1] == pytest.approx(1 - math.exp(-1 / 3), rel=1e-3)


def test_the_decay_of_a_row_is_that_of_scipy_bit_for_bit() -> None:
    counts_yx = np.random.default_rng(0).poisson(20, (37, 53)).astype(np.float32)
    start_y, keep = counts_yx[:, 0] / 3, math.exp(-1 / 1.7)
    wanted, _ = lfilter([1 - keep], [1, -keep], counts_yx, axis=1, zi=start_y[:, None])
    assert np.array_equal(_decaying(counts_yx, keep, start_y), wanted)
