"""Teachers: labelled tiles made out of frames that nobody labelled."""

import numpy as np
import pytest

from manybeam.errors import InvalidInput
from manybeam.learn.adaptation.pseudo_labels import (
    frames_digest,
    mixed_tiles,
    pseudo_labelled_tiles,
    simulated_tiles,
    sure_atoms,
    twin_tiles,
)
from manybeam.learn.nets.prediction import Prediction
from manybeam.spec import Policy
from manybeam.spec.recipe import TileSpec

SPEC = TileSpec(tile_px=48, pixel_size_pm=16)
POLICY = Policy(
    id="p",
    sample={"structure": "graphene", "hole_probability": 0},
    scan={"pixel_size_pm": [14, 24]},
    dose_e_per_a2=1e6,
)


def answer(
    atoms: np.ndarray, frame: np.ndarray, *lonely: np.ndarray, std: float = 0.0
) -> Prediction:
    """Return what two members would answer: these atoms together, these each alone."""
    spread = np.full(frame.shape, std, np.float32)
    alone = [*lonely, *[np.empty((0, 4), np.float32)] * 2][:2]
    return Prediction(atoms, alone, (0, 1), frame.shape, 16.0, _known=(spread, spread, spread))


def atoms_at(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 7)


SURE = (20, 20, 0, 0.95, 0.2, 0.2, 1.0)
FEW_VOTES = (40, 40, 0, 0.7, 0.2, 0.2, 0.5)
WIDE = (60, 60, 0, 0.9, 3.0, 3.0, 1.0)
UNLIKELY = (75, 75, 0, 0.4, 0.2, 0.2, 1.0)


def test_simulated_tiles_are_of_the_asked_size_and_hold_atoms():
    inputs, targets = simulated_tiles(POLICY, SPEC, count=4, seed=1)
    assert inputs.shape == targets.shape == (4, 48, 48)
    assert all(0.05 < target.mean() < 0.9 for target in targets)
    assert all((tile[target > 0]).mean() > (tile[target == 0]).mean() + 0.3
               for tile, target in zip(inputs, targets, strict=True))  # fmt: skip


def test_half_of_a_twin_lesson_is_of_the_inferred_condition_and_half_general():
    twin = POLICY.model_copy(update={"dose_e_per_a2": 2e4})
    labelled = twin_tiles("digest", twin, POLICY, SPEC, count=3, seed=7)
    np.testing.assert_array_equal(
        labelled.tiles.input_nyx[:3], simulated_tiles(twin, SPEC, count=3, seed=7)[0]
    )
    assert len(labelled.tiles) == 6
    assert labelled.tiles.source == ("digest",)


def test_lessons_from_other_frames_have_other_digests():
    one, two = (twin_tiles(name, POLICY, POLICY, SPEC, count=1, seed=7) for name in "ab")
    assert one.tiles.digest != two.tiles.digest


def test_only_atoms_with_votes_probability_and_position_are_sure():
    prediction = answer(atoms_at(SURE, FEW_VOTES, WIDE, UNLIKELY), np.zeros((96, 96)))
    assert sure_atoms(prediction, radius_px=2.6).tolist() == [True, False, False, False]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def pseudo(frame: np.ndarray, prediction: Prediction):
    return pseudo_labelled_tiles("digest", [(frame, prediction)], POLICY, SPEC, seed=0)


def test_a_pseudo_lesson_is_made_of_the_new_frames_own_pixels():
    frame = noise(96, 96)
    labelled = pseudo(frame, answer(atoms_at(SURE), frame))
    np.testing.assert_array_equal(labelled.tiles.input_nyx[0], frame[:48, :48])
    assert len(labelled.tiles) == 2 * 4


def test_pseudo_masks_mark_sure_atoms_and_leave_doubtful_neighbourhoods_out():
    frame, lonely = noise(96, 96), np.array([[10, 40, 0, 0.6]], np.float32)
    labelled = pseudo(frame, answer(atoms_at(SURE, FEW_VOTES), frame, lonely))
    target, weight = labelled.tiles.target_nyx[0], labelled.weight_nyx[0]
    assert target[20, 20] == 1
    assert weight[20, 20] == 1
    assert target[40, 40] == weight[40, 40] == 0
    assert target[10, 40] == weight[10, 40] == 0
    assert weight[5, 5] == 1


def test_pixels_the_members_disagree_on_count_less():
    frame = noise(48, 48)
    labelled = pseudo(frame, answer(atoms_at(SURE), frame, std=0.25))
    assert labelled.weight_nyx[0][20, 20] == pytest.approx(np.exp(-1))
    assert (labelled.weight_nyx[1] == 1).all()  # the general half is known


def test_a_frame_smaller_than_a_tile_is_reflected_at_no_weight():
    frame = noise(40, 30)
    labelled = pseudo(frame, answer(atoms_at(SURE), frame))
    assert (labelled.weight_nyx[0][40:] == 0).all()
    assert (labelled.weight_nyx[0][:, 30:] == 0).all()


def test_frames_without_an_agreed_atom_are_no_lesson():
    frame = noise(96, 96)
    with pytest.raises(InvalidInput, match="agree on no atom"):
        pseudo(frame, answer(atoms_at(FEW_VOTES), frame))


def both(frame: np.ndarray, prediction: Prediction, count: int = 8):
    twin = POLICY.model_copy(update={"dose_e_per_a2": 2e4})
    seen = [(frame, prediction)]
    return twin, mixed_tiles("digest", twin, seen, POLICY, SPEC, count=count, seed=7)


def test_a_lesson_of_both_is_a_quarter_twins_a_quarter_the_frames_and_half_known():
    frame = noise(96, 96)
    twin, labelled = both(frame, answer(atoms_at(SURE), frame))
    inputs = labelled.tiles.input_nyx
    assert len(inputs) == 16
    np.testing.assert_array_equal(inputs[:4], simulated_tiles(twin, SPEC, count=4, seed=7)[0])
    corners = [frame[y : y + 48, x : x + 48] for y in (0, 48) for x in (0, 48)]
    assert all(any(np.array_equal(tile, corner) for corner in corners) for tile in inputs[4:8])
    np.testing.assert_array_equal(inputs[8:], simulated_tiles(POLICY, SPEC, count=8, seed=8)[0])
    assert labelled.tiles.source == ("digest",)


def test_few_frames_are_taught_again_until_their_quarter_is_full():
    frame = noise(48, 48)
    labelled = both(frame, answer(atoms_at(SURE), frame))[1]
    assert all(np.array_equal(tile, frame) for tile in labelled.tiles.input_nyx[4:8])


def test_without_agreement_a_lesson_of_both_is_one_of_twins():
    frame = noise(96, 96)
    twin, labelled = both(frame, answer(atoms_at(FEW_VOTES), frame))
    alone = twin_tiles("digest", twin, POLICY, SPEC, count=8, seed=7)
    assert labelled.tiles.digest == alone.tiles.digest


def test_the_name_of_frames_changes_with_one_pixel_and_with_the_pixel_size():
    frames = np.zeros((2, 8, 8), np.float32)
    other = frames.copy()
    other[1, 3, 3] = 1
    names = {frames_digest(frames, 16.0), frames_digest(other, 16.0), frames_digest(frames, 17.0)}
    assert len(names) == 3
