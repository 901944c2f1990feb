"""Tiles: positions survive rescaling, brightness is comparable, staging happens once."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from manybeam.data.frames import FrameSet
from manybeam.data.tiles import (
    Frame,
    draw_mask,
    normalise,
    rescale,
    rescale_truth,
    stage_tiles,
)
from manybeam.errors import InvalidFrame, InvalidInput, MissingPixelSize, TooLarge, WriteFailed
from manybeam.spec import Condition
from manybeam.spec.recipe import TileSpec

SPEC = TileSpec(tile_px=32, pixel_size_pm=20.0, mask_radius_pm=40.0)


def spot(y: float, x: float, shape: tuple[int, int] = (96, 96), sigma: float = 2.0) -> Frame:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    found: Frame = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2)).astype(
        np.float32
    )
    return found


def centroid(frame: Frame) -> tuple[float, float]:
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]]
    total = frame.sum(dtype=np.float64)
    return float((frame * rows).sum() / total), float((frame * columns).sum() / total)


def frameset(
    folder: Path,
    frames: Frame,
    truth: list[Frame] | None,
    pixel_size_pm: float | None = 20.0,
) -> FrameSet:
    found = FrameSet.create(folder, Condition(id="test"), shape=frames.shape[1:])
    found.append(frames, truth, pixel_size_pm)
    return found


def noise(count: int, shape: tuple[int, int], seed: int = 1) -> Frame:
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def atoms(*positions: tuple[float, float]) -> Frame:
    return np.array([(y, x, 6) for y, x in positions], np.float32).reshape(-1, 3)


@pytest.mark.parametrize("pixel_size_pm", [5.3, 8.0, 10.0, 12.7, 16.0, 17.6, 24.0, 29.3, 48.0])
def test_an_atom_keeps_its_place_to_a_fiftieth_of_a_pixel_at_any_scale(
    pixel_size_pm: float,
) -> None:
    frame, scale = rescale(spot(41.3, 52.8), pixel_size_pm, 16.0)
    y, x = centroid(frame)
    assert abs(y - ((41.3 + 0.5) * scale - 0.5)) < 0.02
    assert abs(x - ((52.8 + 0.5) * scale - 0.5)) < 0.02


def test_truth_is_moved_as_rescaling_moves_the_frame() -> None:
    frame, scale = rescale(spot(41.3, 52.8), 10.0, 16.0)
    moved = rescale_truth(atoms((41.3, 52.8)), scale)
    assert np.abs(moved[0, :2] - centroid(frame)).max() < 0.02
    assert moved[0, 2] == 6


def test_shrinking_a_checkerboard_gives_grey_and_no_moire() -> None:
    board = (np.indices((96, 96)).sum(axis=0) % 2).astype(np.float32)
    small, _ = rescale(board, 10.0, 29.0)
    assert abs(small[3:-3, 3:-3] - 0.5).max() < 0.02


def test_a_frame_at_the_wanted_pixel_size_is_untouched() -> None:
    frame = spot(41.3, 52.8)
    same, scale = rescale(frame, 16.0, 16.0)
    assert same is frame
    assert scale == 1.0


def test_a_stack_is_rescaled_frame_by_frame() -> None:
    stack_nyx = np.stack([spot(20.2, 30.1), spot(60.7, 44.4)])
    together, _ = rescale(stack_nyx, 10.0, 16.0)
    assert np.array_equal(together[1], rescale(stack_nyx[1], 10.0, 16.0)[0])


@pytest.mark.parametrize("shape", [(97, 131), (33, 500), (128, 64)], ids=str)
def test_odd_sides_lose_less_than_a_pixel(shape: tuple[int, int]) -> None:
    frame, scale = rescale(np.zeros(shape, np.float32), 11.0, 16.0)
    assert frame.shape == tuple(int(side * scale) for side in shape)


def test_a_frame_that_would_vanish_is_refused() -> None:
    with pytest.raises(InvalidFrame, match="less than one pixel would remain"):
        rescale(np.ones((3, 3), np.float32), 1.0, 16.0)


@pytest.mark.parametrize("target_pm", [2.7, 9.0, 11.0, 16.0, 40.0, 100.0])
def test_rescaling_is_the_bicubic_one_with_antialiasing_of_torch(target_pm: float) -> None:
    frame = noise(1, (97, 130))[0]
    own, scale = rescale(frame, 11.0, target_pm)
    expected = functional.interpolate(
        torch.from_numpy(frame)[None, None],
        scale_factor=(scale, scale),
        mode="bicubic",
        antialias=True,
        recompute_scale_factor=False,
    )
    # Torch rounds its weights to float32.
    np.testing.assert_allclose(own, expected[0, 0], rtol=0, atol=1e-4)


def test_a_pixel_size_too_coarse_for_the_network_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"enlarged 30\.9 times"):
        rescale(np.ones((100, 100), np.float32), 495.0, 16.0)


def test_a_pixel_size_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(TooLarge, match="max_frame_px"):
        rescale(np.ones((2000, 2000), np.float32), 500.0, 1.0)


def test_a_normalised_frame_has_mean_zero_and_deviation_one() -> None:
    frame = normalise(noise(1, (64, 64))[0] * 37 + 1e6, "frame", 1)
    assert abs(frame.mean()) < 0.01
    assert abs(frame.std() - 1) < 0.01


@pytest.mark.parametrize("how", ["frame", "local"])
def test_a_bright_neighbour_in_the_stack_changes_nothing(how: str) -> None:
    stack_nyx = noise(2, (48, 48)) * np.array([1, 1000], np.float32)[:, None, None]
    together = normalise(stack_nyx, how, 6.0)
    assert np.array_equal(together[0], normalise(stack_nyx[0], how, 6.0))


@pytest.mark.parametrize("how", ["frame", "local"])
@given(gain=st.floats(0.01, 1e4), offset=st.floats(-1e3, 1e3))
def test_gain_and_offset_of_the_detector_do_not_matter(
    how: str, gain: float, offset: float
) -> None:
    frame = noise(1, (48, 48))[0]
    other = normalise((gain * (frame + offset / 100)).astype(np.float32), how, 6.0)
    assert np.allclose(other, normalise(frame, how, 6.0), atol=2e-3)


def test_local_normalisation_takes_a_ramp_of_thickness_away() -> None:
    ramp = np.linspace(0, 50, 128, dtype=np.float32)[None, :] * np.ones((128, 1), np.float32)
    flat = normalise(ramp + noise(1, (128, 128))[0], "local", 8.0)
    thirds = [flat[:, 32:64].mean(), flat[:, 64:96].mean()]
    assert np.abs(thirds).max() < 0.05
    assert abs(flat[32:96, 32:96].std() - 1) < 0.1


def test_noise_in_an_empty_area_is_not_blown_up_into_atoms() -> None:
    frame = noise(1, (128, 128))[0] * 0.001
    frame[:, :64] += sum(spot(y, 30, (128, 64)) for y in range(8, 128, 12)) * 10
    assert np.abs(normalise(frame, "local", 6.0)[:, 100:]).max() < 0.1


def test_values_far_off_are_clipped() -> None:
    frame = noise(1, (64, 64))[0]
    frame[0, 0], frame[1, 1] = 1e6, -1e6
    assert normalise(frame, "frame", 1)[0, 0] == 6
    assert normalise(frame, "frame", 1)[1, 1] == -4


def test_a_constant_frame_becomes_zeros() -> None:
    assert not normalise(np.full((2, 16, 16), 7, np.float32), "local", 4.0).any()


@given(
    st.lists(st.tuples(st.floats(-6, 26), st.floats(-6, 36)), max_size=12),
    st.floats(0.1, 5),
)
def test_a_mask_marks_each_pixel_within_the_radius(
    positions: list[tuple[float, float]], radius_px: float
) -> None:
    truth = atoms(*positions)
    rows, columns = np.mgrid[:20, :30]
    expected = np.zeros((20, 30), bool)
    for y, x, _ in truth:
        expected |= (rows - y) ** 2 + (columns - x) ** 2 <= np.float32(radius_px) ** 2
        expected |= (rows == np.rint(y)) & (columns == np.rint(x))
    wrong = draw_mask(truth, (20, 30), float(np.float32(radius_px))) != expected
    distance = np.array([np.hypot(rows - y, columns - x) for y, x, _ in truth] or [[[99.0]]])
    assert not (wrong & (np.abs(distance - radius_px).min(axis=0) > 1e-5)).any()


def test_where_two_atoms_overlap_the_nearer_one_wins() -> None:
    truth = np.array([[10, 10, 6], [10, 14, 78]], np.float32)
    mask = draw_mask(truth, (20, 24), 3.0, elements=(6, 78))
    assert (mask[10, 7:12] == 1).all()
    assert (mask[10, 13:18] == 2).all()
    assert np.array_equal(mask > 0, draw_mask(truth, (20, 24), 3.0) == 1)


def test_an_atom_of_another_element_marks_nothing() -> None:
    assert not draw_mask(atoms((5, 5)), (10, 10), 2.0, elements=(14,)).any()


@pytest.mark.slow
def test_many_atoms_of_a_large_radius_are_drawn_without_a_large_memory() -> None:
    truth = np.column_stack([np.random.default_rng(0).uniform(0, 200, (200, 2)), np.zeros(200)])
    assert draw_mask(truth.astype(np.float32), (200, 200), 60.0).all()


def test_tiles_hold_every_pixel_of_every_frame(tmp_path: Path) -> None:
    frames_nyx = noise(3, (50, 75))
    source = frameset(tmp_path / "frames", frames_nyx, [atoms((10, 10))] * 3)
    tiles = stage_tiles([source], SPEC, tmp_path / "cache", seed=0)
    assert tiles.input_nyx.shape == tiles.target_nyx.shape == (3 * 2 * 3, 32, 32)
    assert np.isin(normalise(frames_nyx, "frame", 1), tiles.input_nyx).all()


def test_masks_lie_on_the_atoms_after_rescaling(tmp_path: Path) -> None:
    frame = spot(50.2, 40.9, (128, 128), sigma=4.0)
    source = frameset(tmp_path / "frames", frame[None], [atoms((50.2, 40.9))], 8.0)
    tiles = stage_tiles([source], SPEC.model_copy(update={"tile_px": 64}), tmp_path, seed=0)
    mask = np.asarray(tiles.target_nyx[0], np.float32)
    bright = np.asarray(tiles.input_nyx[0]) - tiles.input_nyx[0].min()
    assert np.abs(np.subtract(centroid(mask), centroid(bright * (bright > 0.5)))).max() < 0.3
    assert abs(mask.sum() - np.pi * (40 / 20) ** 2) < 3


def test_a_frame_smaller_than_a_tile_is_reflected_with_its_mask(tmp_path: Path) -> None:
    source = frameset(tmp_path / "frames", noise(1, (20, 20)), [atoms((17, 10))])
    tiles = stage_tiles([source], SPEC, tmp_path, seed=0)
    image, mask = np.asarray(tiles.input_nyx[0]), np.asarray(tiles.target_nyx[0])
    assert np.array_equal(image[20:32], image[18:6:-1])
    assert np.array_equal(mask[20:32], mask[18:6:-1])
    assert mask[21, 10] == 1


def test_tiles_are_staged_once_and_read_again(tmp_path: Path) -> None:
    source = frameset(tmp_path / "frames", noise(2, (40, 40)), [atoms((9, 9))] * 2)
    first = stage_tiles([source], SPEC, tmp_path / "cache", seed=0)
    file = tmp_path / "cache" / first.digest / "input.npy"
    os.utime(file, (1, 1))
    again = stage_tiles([source], SPEC, tmp_path / "cache", seed=0)
    assert file.stat().st_mtime == 1
    assert np.array_equal(first.input_nyx, again.input_nyx)
    assert again.source == (source.digest,)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.digest]


def test_seed_spec_and_frames_each_make_other_tiles(tmp_path: Path) -> None:
    source = frameset(tmp_path / "a", noise(1, (40, 40)), [atoms((9, 9))])
    other = frameset(tmp_path / "b", noise(1, (40, 40), seed=2), [atoms((9, 9))])
    wider = SPEC.model_copy(update={"mask_radius_pm": 60.0})
    longer = SPEC.model_copy(update={"frames_per_policy": 7})
    stage = [
        stage_tiles([source], SPEC, tmp_path, seed=0),
        stage_tiles([source], SPEC, tmp_path, seed=1),
        stage_tiles([source], wider, tmp_path, seed=0),
        stage_tiles([other], SPEC, tmp_path, seed=0),
        stage_tiles([source, other], SPEC, tmp_path, seed=0),
    ]
    assert len({tiles.digest for tiles in stage}) == len(stage)
    assert stage_tiles([source], longer, tmp_path, seed=0).digest == stage[0].digest


def test_the_same_seed_gives_equal_tiles_in_another_cache(tmp_path: Path) -> None:
    source = frameset(tmp_path / "frames", noise(2, (100, 70)), [atoms((9, 9))] * 2)
    one = stage_tiles([source], SPEC, tmp_path / "one", seed=3)
    two = stage_tiles([source], SPEC, tmp_path / "two", seed=3)
    assert np.array_equal(one.input_nyx, two.input_nyx)
    assert np.array_equal(one.target_nyx, two.target_nyx)


def test_two_workers_staging_at_once_end_with_one_whole_copy(tmp_path: Path) -> None:
    source = frameset(tmp_path / "frames", noise(6, (100, 100)), [atoms((9, 9))] * 6)
    found: list[float] = []

    def work() -> None:
        tiles = stage_tiles([source], SPEC, tmp_path / "cache", seed=0)
        found.append(float(tiles.input_nyx.sum(dtype=np.float64)))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_frames_without_truth_are_refused(tmp_path: Path) -> None:
    source = frameset(tmp_path / "frames", noise(1, (40, 40)), None)
    with pytest.raises(InvalidInput, match="has no truth"):
        stage_tiles([source], SPEC, tmp_path, seed=0)


def test_frames_without_pixel_size_are_refused(tmp_path: Path) -> None:
    source = frameset(tmp_path / "frames", noise(1, (40, 40)), [atoms((9, 9))], None)
    with pytest.raises(MissingPixelSize, match="frame 0"):
        stage_tiles([source], SPEC, tmp_path, seed=0)


def test_no_frames_at_all_are_refused(tmp_path: Path) -> None:
    empty = FrameSet.create(tmp_path / "frames", Condition(id="test"), shape=(8, 8))
    with pytest.raises(InvalidInput, match="no frames"):
        stage_tiles([empty], SPEC, tmp_path, seed=0)


def test_a_cache_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    source = frameset(tmp_path / "frames", noise(1, (40, 40)), [atoms((9, 9))])
    (tmp_path / "cache").write_text("a file, where a folder should be")
    with pytest.raises(WriteFailed, match="tiles could not be written"):
        stage_tiles([source], SPEC, tmp_path / "cache", seed=0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = frameset(tmp_path / "frames", noise(1, (400, 400)), [atoms((9, 9))])
    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, *args, **kwargs: opened(
            Path("/dev/full") if path.name == "input.npy" else path, *args, **kwargs
        ),
    )
    with pytest.raises(WriteFailed, match="No space left"):
        stage_tiles([source], SPEC, tmp_path / "cache", seed=0)
    assert list((tmp_path / "cache").iterdir()) == []
