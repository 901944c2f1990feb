"""One gated round of iterative training: on the new frames, provably, or not at all."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from manybeam.data.frames import FrameSet
from manybeam.data.simulation.simulate import Simulated, simulate
from manybeam.data.tiles import Tiles
from manybeam.errors import InvalidInput
from manybeam.jobs.adapt import held_out_truth, iterate
from manybeam.learn.adaptation.acceptance import Assessment, f1_on, gate, held_means, noise_like
from manybeam.learn.adaptation.pseudo_labels import frames_digest, simulated_tiles, twin_tiles
from manybeam.learn.adaptation.rounds import _gain, adapt, tune
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.member import Member
from manybeam.learn.training.member import train_member
from manybeam.learn.training.threshold import centred
from manybeam.spec import Condition, Library, Policy, Recipe
from manybeam.zoo.matrix import Matrix, Score

pytestmark = pytest.mark.slow

GRAPHENE = {"structure": "graphene"}
RECIPE = Recipe(
    id="small",
    network={"filters": 8, "levels": 4},
    training={"steps": 150, "batch": 8, "learning_rate": 4e-3},
    tiles={"tile_px": 48, "pixel_size_pm": 20, "mask_radius_pm": 45},
    members=[{"seed": 1, "policy": "careful"}, {"seed": 2, "policy": "careful"}],
)


def imaging(kind, name: str, dose, contamination, jitter, size=20):
    return kind(
        id=name,
        sample=GRAPHENE,
        scan={"pixel_size_pm": size, "row_jitter_pm": jitter},
        state={"contamination": contamination, "background": 0.3},
        dose_e_per_a2=dose,
    )


CAREFUL = imaging(Policy, "careful", [8e5, 2e6], [0.02, 0.1], 5)
BROAD = imaging(Policy, "broad", [2e4, 2e6], [0.02, 2.0], [2, 20], [18, 24])
FAINT = imaging(Policy, "faint", [2e4, 5e4], [0.02, 0.3], 5)
NOMINAL = imaging(Condition, "nominal", 1.2e6, 0.05, 5)
DIRTY = imaging(Condition, "dirty", 2e5, 1.5, 5)


@pytest.fixture(scope="module")
def ensemble(one_thread) -> Ensemble:
    """Two small members that know nothing but careful sessions; about three seconds each."""
    inputs, targets = simulated_tiles(CAREFUL, RECIPE.tiles, count=64, seed=1)

    known = Tiles(inputs, targets, ("careful",), "careful")
    return Ensemble([train_member(RECIPE, RECIPE.members[i], i, known) for i in range(2)])


@pytest.fixture(scope="module")
def held_out() -> dict[str, Simulated]:
    """Truth for two conditions, as a job holds it out for all that were measured."""
    dirty = imaging(Condition, "d", 4e5, 1.0, 8)
    return {
        "careful": simulate(NOMINAL, 3, seed=500, shape=(96, 96)),
        "dirty": simulate(dirty, 3, seed=501, shape=(96, 96)),
    }


@pytest.fixture(scope="module")
def drifted() -> Simulated:
    return simulate(DIRTY, 2, seed=600, shape=(96, 96))


def round_on(ensemble: Ensemble, made: Simulated, held_out: dict[str, Simulated], **more):
    given = {"members": (0,), "steps": 100, "draws": 64, "policies": {"careful": CAREFUL}, **more}
    return adapt(ensemble, made.frames_nyx, 20.0, imaging=BROAD, held_out=held_out, **given)


class Memory(dict):
    """A store that holds steps in this process."""

    put = dict.__setitem__


@pytest.fixture(scope="module")
def kept() -> Memory:
    return Memory()


@pytest.fixture(scope="module")
def twin_round(ensemble, drifted, held_out, kept):
    return round_on(ensemble, drifted, held_out, step_store=kept)


def test_a_twin_round_lifts_f1_on_drifted_frames_nobody_labelled(ensemble, drifted, twin_round):
    assert twin_round.accepted, twin_round.why
    before = f1_on(ensemble.subset([0]), drifted)
    after = f1_on(Ensemble([twin_round.members[0]]), drifted)
    assert after > before + 0.05


def test_an_accepted_round_rose_in_fitness_and_kept_its_f1_on_held_out_truth(twin_round):
    assert twin_round.after.fitness > twin_round.before.fitness
    assert twin_round.after.f1 >= twin_round.before.f1 - 0.005
    assert twin_round.steps[0].why.startswith("adapted: label-free score")


def test_only_the_members_asked_for_are_touched(ensemble, twin_round):
    assert twin_round.members[1] is ensemble.members[1]
    assert [step.member for step in twin_round.steps] == [0]
    assert twin_round.members[0].index == 0


def test_the_adapted_member_names_the_new_frames_it_was_trained_for(drifted, ensemble, twin_round):
    assert twin_round.frames_digest == frames_digest(drifted.frames_nyx, 20.0)
    assert twin_round.members[0].data_digest != ensemble.members[0].data_digest
    assert twin_round.inferred.policy.state.contamination.low > BROAD.state.contamination.low


@pytest.mark.parametrize("labels", ["twin", "pseudo", "both"])
def test_a_second_round_on_other_frames_trains_on_those_and_not_on_the_old_ones(
    labels, ensemble, drifted, held_out
):
    other = simulate(DIRTY, 2, seed=601, shape=(96, 96))
    always = {"labels": labels, "steps": 2}
    first, second = (_tuned(ensemble, made, held_out, **always) for made in (drifted, other))
    assert first.data_digest != second.data_digest
    assert _differ(first, second)


def test_a_round_done_again_on_the_same_frames_gives_equal_weights(ensemble, drifted, held_out):
    always = {"labels": "pseudo", "steps": 2}
    first, again = (_tuned(ensemble, drifted, held_out, **always) for _ in range(2))
    assert first.data_digest == again.data_digest
    assert not _differ(first, again)


def _tuned(ensemble: Ensemble, made: Simulated, held_out: dict[str, Simulated], **more) -> Member:
    """Return the tuned member whether or not the gate let it pass."""
    found = round_on(ensemble, made, held_out, **more)
    assert found.tuned
    return found.tuned[0]


def _differ(one: Member, two: Member) -> bool:
    return _differ_in(one, two, one.weights)


def test_a_tuning_that_destroys_the_member_is_refused_and_its_weights_kept(
    ensemble, drifted, held_out
):
    wild = RECIPE.model_copy(
        update={"training": RECIPE.training.model_copy(update={"learning_rate": 1.0})}
    )
    reckless = Ensemble([dataclasses.replace(one, recipe=wild) for one in ensemble.members])
    found = round_on(reckless, drifted, held_out, labels="pseudo", steps=10)
    assert "parent kept" in found.why or "not tuned" in found.why
    assert _trained(found.members[0]).keys() == _trained(reckless.members[0]).keys()
    assert not _differ_in(found.members[0], reckless.members[0], _trained(found.members[0]))


def _trained(member: Member) -> dict[str, torch.Tensor]:
    """Return the weights that training changes: all but what batch norms measured."""
    return {name: one for name, one in member.weights.items() if "running" not in name}


def _differ_in(one: Member, two: Member, names) -> bool:
    return any(not torch.equal(one.weights[name], two.weights[name]) for name in names)


def test_a_round_on_frames_the_members_know_already_is_refused(ensemble, held_out):
    known = simulate(NOMINAL, 2, seed=700, shape=(96, 96))
    found = round_on(ensemble, known, held_out, labels="pseudo", max_regression=0.0)
    assert not found.accepted
    assert found.members == ensemble.members


def test_tuning_starts_from_the_members_own_weights(ensemble):
    labelled = twin_tiles("d", CAREFUL, CAREFUL, RECIPE.tiles, count=4, seed=0)
    parent = ensemble.members[0]
    child = tune(parent, labelled, steps=1, seed=0)
    moved = [(child.weights[n] - parent.weights[n]).abs().max() for n in parent.weights
             if n.endswith("weight")]  # fmt: skip
    assert 0 < max(moved) < 0.1
    assert child.policy == parent.policy


@pytest.fixture(scope="module")
def faint_member() -> Member:
    """One member whose loss, on few electrons, wants no pixel above 0.5: centred, it finds atoms.

    As a training of the platform ends.
    """
    training = RECIPE.training.model_copy(update={"loss": "bce", "steps": 80})
    tiles = RECIPE.tiles.model_copy(update={"mask_radius_pm": 20})
    recipe = RECIPE.model_copy(update={"training": training, "tiles": tiles})
    inputs, targets = simulated_tiles(FAINT, tiles, count=64, seed=1)
    known = Tiles(inputs, targets, ("faint",), "faint")
    return centred(train_member(recipe, recipe.members[0], 0, known), labelled(FAINT, 900))


def labelled(policy: Policy, seed: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
    made = simulate(policy, 8, seed=seed, shape=(96, 96))
    return list(zip(made.frames_nyx, made.truth, map(float, made.pixel_size_pm), strict=True))


def test_a_tuned_member_is_centred_again_before_it_is_judged(faint_member, held_out):
    fresh = simulate(FAINT, 8, seed=901, shape=(96, 96))
    parent = Ensemble([faint_member])
    given = {"imaging": FAINT, "held_out": held_out, "policies": {"careful": FAINT}, "steps": 20,
             "draws": 64}  # fmt: skip
    found = adapt(parent, fresh.frames_nyx[:2], 20.0, **given)
    before, after = f1_on(parent, fresh), f1_on(Ensemble([found.tuned[0]]), fresh)
    assert after > before - 0.1


def test_a_gain_on_one_condition_does_not_buy_a_loss_on_another():
    before = Assessment(0.8, 0.85, 0.8, {"nominal": (0.99, 0.002), "dirty": (0.71, 0.01)})
    after = Assessment(0.9, 0.93, 0.9, {"nominal": (0.97, 0.003), "dirty": (0.89, 0.01)})
    assert "nominal fell from 0.990 to 0.970" in gate(before, after, max_regression=0.005)


def test_a_condition_where_the_parent_is_no_use_has_nothing_to_lose():
    before = Assessment(0.8, 0.85, 0.8, {"nominal": (0.99, 0.002), "extreme": (0.19, 0.01)})
    after = Assessment(0.9, 0.93, 0.9, {"nominal": (0.99, 0.002), "extreme": (0.11, 0.01)})
    assert gate(before, after, max_regression=0.005) == ""


def test_what_was_held_is_told_where_the_parent_was_of_use_as_the_gate_counts_it():
    before = Assessment(0.8, 0.58, 0.8, {"nominal": (0.99, 0.002), "extreme": (0.17, 0.01)})
    after = Assessment(0.9, 0.64, 0.9, {"nominal": (0.988, 0.002), "extreme": (0.3, 0.01)})
    assert held_means(before, after) == (0.99, 0.988)
    assert "held-out F1 0.990 to 0.988" in _gain(before, after)


GOOD = Assessment(fitness=0.8, f1=0.95, twin_f1=0.8)


@pytest.mark.parametrize(
    ("after", "word"),
    [
        pytest.param(Assessment(0.9, 0.951, 0.9), "", id="better everywhere"),
        pytest.param(Assessment(0.9, 0.946, 0.9), "", id="a loss within the gate"),
        pytest.param(Assessment(0.99, 0.94, 0.99), "held-out truth fell", id="forgot"),
        pytest.param(Assessment(0.8, 0.99, 0.9), "label-free score", id="nothing gained"),
        pytest.param(Assessment(0.9, 0.95, 0.7), "labelled twins", id="worse on twins"),
        pytest.param(
            Assessment(0.9, 0.95, 0.9, on_noise=0.88), "fit noise", id="sees atoms in noise"
        ),
        pytest.param(Assessment(float("nan"), 0.95, 0.8), "label-free", id="no score at all"),
        pytest.param(Assessment(0.9, float("nan"), 0.8), "held-out", id="no f1 at all"),
    ],
)
def test_the_gate(after, word):
    refusal = gate(GOOD, after, max_regression=0.005)
    assert bool(refusal) == bool(word)
    assert word in refusal


@pytest.mark.parametrize(
    ("change", "word"),
    [
        pytest.param({"frames_nyx": np.empty((0, 96, 96))}, "shape", id="no frames"),
        pytest.param({"frames_nyx": np.zeros((96, 96))}, "shape", id="one bare frame"),
        pytest.param({"frames_nyx": np.ones((2, 96, 96))}, "0, 1 is constant", id="empty frames"),
        pytest.param({"rounds": 0}, "0 rounds", id="no round"),
        pytest.param({"labels": "oracle"}, "twin, pseudo, both", id="unknown labels"),
        pytest.param(
            {"held_out": {"a": Simulated(np.empty((0, 9, 9)), [], np.empty(0))}},
            "held-out",
            id="no truth",
        ),
    ],
)
def test_a_round_is_refused(change, word, ensemble, drifted, held_out):
    given = {"frames_nyx": drifted.frames_nyx, "held_out": held_out, "imaging": BROAD, **change}
    with pytest.raises(InvalidInput, match=word):
        adapt(ensemble, given.pop("frames_nyx"), 20.0, **given)


def test_frames_of_several_conditions_are_refused_and_named(ensemble, drifted, held_out):
    mixed = np.concatenate([simulate(NOMINAL, 2, seed=3, shape=(96, 96)).frames_nyx,
                            drifted.frames_nyx])  # fmt: skip
    made = dataclasses.replace(drifted, frames_nyx=mixed)
    with pytest.raises(InvalidInput, match=r"of 2 conditions; their indices: 0, 1 \| 2, 3"):
        round_on(ensemble, made, held_out)


@pytest.mark.parametrize(("labels", "grain"), [("twin", 0), ("twin", 1.5), ("pseudo", 0)], ids=str)
def test_pure_noise_is_never_accepted(labels, grain, ensemble, held_out):
    with contextlib.suppress(InvalidInput):  # members that agree on nothing there teach nothing
        found = round_on(ensemble, noise(grain), held_out, labels=labels, steps=40)
        assert not found.accepted, found.why
        assert found.members == ensemble.members


def noise(grain: float) -> Simulated:
    white = np.random.default_rng(4).normal(50, 7, (2, 96, 96))
    frames = gaussian_filter(white, (0, grain, grain)).astype(np.float32)
    return Simulated(frames, [], np.array([20.0, 20.0]))


def test_noise_like_a_frame_has_its_spectrum_and_none_of_its_lattice():
    frame = simulate(NOMINAL, 1, seed=8, shape=(96, 96)).frames_nyx
    noise_nyx = noise_like(frame, seed=0)
    assert noise_nyx.mean() == pytest.approx(frame.mean(), rel=1e-3)
    assert noise_nyx.std() == pytest.approx(frame.std(), rel=1e-3)
    power = [np.abs(np.fft.rfft2(one[0] - one.mean())) ** 2 for one in (frame, noise_nyx)]
    fine = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.rfftfreq(96)) > 0.07
    assert power[1][fine].max() < 0.5 * power[0][fine].max()
    assert power[1][fine].mean() == pytest.approx(power[0][fine].mean(), rel=0.2)


def test_a_second_round_goes_on_with_what_the_first_accepted_until_nothing_is_gained(
    ensemble, drifted, held_out, twin_round, kept
):
    found = round_on(ensemble, drifted, held_out, rounds=3, step_store=kept)
    first, second = found.steps[:2]
    assert (first.round, second.round) == (1, 2)
    assert first == twin_round.steps[0]
    assert second.before.fitness == first.after.fitness
    assert second.before.held == first.before.held
    assert all(step.accepted for step in found.steps[:-1])
    assert found.round_count == 3 or not found.steps[-1].accepted


def test_beside_its_parent_an_adapted_member_is_one_more(ensemble, drifted, held_out):
    found = round_on(ensemble, drifted, held_out, beside=True)
    assert found.accepted, found.why
    assert found.members[:2] == ensemble.members
    assert [one.index for one in found.members] == [0, 1, 2]
    assert found.parents == {2: 0}
    whole = {name: f1_on(ensemble, made) for name, made in held_out.items()}
    assert {name: f1 for name, (f1, _) in found.steps[0].before.held.items()} == whole
    now = np.mean([f1_on(Ensemble(found.members), made) for made in held_out.values()])
    assert now >= np.mean(list(whole.values())) - 0.005


def test_a_finished_step_is_taken_from_what_was_kept(ensemble, drifted, held_out):
    kept = Memory()
    both = {"labels": "pseudo", "steps": 2, "members": (0, 1), "step_store": kept}
    whole = round_on(ensemble, drifted, held_out, **both)
    assert sorted(kept) == ["round-01-member-00", "round-01-member-01"]
    del kept["round-01-member-01"]
    again = round_on(ensemble, drifted, held_out, **both)
    assert again.steps == whole.steps
    assert not any(map(_differ, again.members, whole.members))
    assert not any(map(_differ, again.tuned, whole.tuned))


@pytest.fixture
def library(tmp_path) -> Library:
    folder = tmp_path / "zoo"
    (folder / "conditions").mkdir(parents=True)
    (folder / "conditions" / "nominal.yaml").write_text(NOMINAL.model_dump_json(exclude_none=True))
    return Library(folder)


def test_truth_is_held_out_for_every_simulated_condition_of_the_matrix(library):
    scores = Matrix([Score(0, "nominal", "d", {"f1": 1.0}), Score(0, "gone", "d", {"f1": 1.0})])
    assert list(held_out_truth(scores, library)) == ["nominal"]
    with pytest.raises(InvalidInput, match="no simulated condition to test"):
        held_out_truth(Matrix(), library)


def test_an_accepted_round_is_registered_as_a_candidate_and_the_serving_version_stays(
    embedded, tmp_path, ensemble, drifted, library
):
    scores = [Score(i, "nominal", NOMINAL.digest, {"f1": 0.99}) for i in range(2)]
    embedded.register("graphene", ensemble.members, job={}, alias="serving", scores=scores)
    frames = FrameSet.create(str(tmp_path / "new.zarr"), DIRTY, shape=(96, 96))
    frames.append(drifted.frames_nyx, None, 20.0)
    asked = {"members": [0], "labels": "pseudo", "steps": 40, "max_regression": 0.2}
    outcome = iterate(embedded, "graphene", frames.url, BROAD, library, **asked)
    assert outcome.record is not None, outcome.round.why
    assert outcome.record.aliases == ("candidate",)
    assert outcome.record.parent == "graphene@1"
    assert [one.parent for one in outcome.record.members] == ["graphene@1/00", ""]
    assert embedded.resolve("graphene").version == 1
