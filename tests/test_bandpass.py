"""learn.bandpass and learn.fitted: the classical detector as a member among others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter

from manybeam.data.simulation.simulate import simulate
from manybeam.errors import InvalidInput, InvalidSpec
from manybeam.jobs.train import train
from manybeam.learn.nets.bandpass import BandPass
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.scoring.scores import f1_of, match_frame
from manybeam.learn.training.fitted import fit_bandpass
from manybeam.learn.training.threshold import Labelled, centred
from manybeam.spec import Library
from manybeam.spec.job import Job
from manybeam.spec.recipe import MemberPlan, Network, Recipe
from manybeam.zoo.registry import Zoo

ROOT = Path(__file__).parents[1]
BANDPASS = Network(name="bandpass")
PLAN = MemberPlan(seed=1, policy="graphene-nominal", network=BANDPASS)


def recipe(**fields: Any) -> Recipe:
    words = {"id": "mixed", "network": Network(filters=2, levels=2), "members": (PLAN,)}
    return Recipe.model_validate({**words, **fields})


def labelled(name: str, count: int, seed: int, side: int = 96) -> list[Labelled]:
    policy = Library(ROOT / "zoo").policy(name)
    made = simulate(policy, count, seed=seed, shape=(side, side))
    sizes = made.pixel_size_pm.tolist()
    return list(zip(made.frames_nyx, made.truth, sizes, strict=True))


def f1(members: Any, frames: list[Labelled], radius_pm: float | None = None) -> float:
    ensemble, counts = Ensemble(members), np.zeros(3, int)
    for frame, truth, size in frames:
        atoms = ensemble.predict(frame, size).atoms
        counts += match_frame(
            atoms, truth, size, (frame.shape[0], frame.shape[1]), radius_pm
        ).counts
    return float(f1_of(counts))


@pytest.fixture(scope="module")
def fitted() -> Any:
    of_graphene = recipe()
    member = fit_bandpass(
        of_graphene.of(PLAN), PLAN, 0, labelled("graphene-nominal", 12, seed=1), "0" * 32
    )
    return centred(member, labelled("graphene-nominal", 6, seed=2))


def test_its_logits_are_the_heights_of_a_difference_of_gaussians() -> None:
    network = BandPass(BANDPASS).eval()
    network.width_px.fill_(2.0)
    network.ratio.fill_(1.5)
    network.window_px.fill_(7.0)
    frame = np.random.default_rng(3).normal(5, 2, (96, 80)).astype(np.float32)
    even = (frame - frame.mean()) / frame.std()
    even = even - gaussian_filter(even, 7.0, mode="mirror")
    even /= np.sqrt(gaussian_filter(even**2, 7.0, mode="mirror"))
    band = gaussian_filter(even, 2.0, mode="mirror") - gaussian_filter(even, 3.0, mode="mirror")
    logits = network(torch.from_numpy(frame)[None, None])[0, 0].detach().numpy()
    worth, least = (float(one.detach()) for one in (network.head.weight, network.head.bias))
    assert np.allclose(logits, worth * band / band.std() + least, atol=0.02)


@pytest.mark.parametrize("sides", [(32, 32), (37, 130)])
def test_frames_of_any_gain_and_size_keep_their_sides(sides: tuple[int, int]) -> None:
    network = BandPass(BANDPASS).eval()
    frame = torch.rand(2, 1, *sides)
    assert torch.allclose(network(frame), network(1000 * frame + 7), atol=1e-2)
    assert network(torch.zeros(1, 1, *sides)).isfinite().all()


@pytest.mark.slow
def test_it_finds_the_atoms_of_frames_it_has_not_seen(fitted: Any) -> None:
    assert f1([fitted], labelled("graphene-nominal", 4, seed=3)) > 0.97


@pytest.mark.slow
def test_the_seed_draws_the_frames_that_are_looked_at() -> None:
    frames = labelled("graphene-nominal", 50, seed=4, side=48)
    plans = [PLAN.model_copy(update={"seed": seed}) for seed in (1, 1, 2)]
    one, same, other = (
        fit_bandpass(recipe().of(plan), plan, 0, frames, "0" * 32).weights for plan in plans
    )
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["head.bias"], other["head.bias"])


def test_empty_frames_teach_nothing_and_say_so() -> None:
    with pytest.raises(InvalidInput, match="show no maxima"):
        fit_bandpass(
            recipe().of(PLAN), PLAN, 0, [(np.zeros((64, 64)), np.zeros((0, 3)), 16.0)], "0" * 32
        )


def test_kinds_of_atom_are_not_told_apart() -> None:
    with pytest.raises(InvalidSpec, match="'bandpass' with 2 classes"):
        BandPass(Network(name="bandpass", classes=2))


def test_members_of_one_seed_and_policy_may_differ_in_their_network() -> None:
    plain = MemberPlan(seed=1, policy="graphene-nominal")
    mixed = recipe(members=(plain, PLAN))
    assert [mixed.of(one).network.name for one in mixed.members] == ["unet", "bandpass"]
    with pytest.raises(ValidationError, match="given twice"):
        recipe(members=(plain, plain.model_copy(update={"network": mixed.network})))
    with pytest.raises(ValidationError, match="2 classes and 0 tiles"):
        recipe(members=(PLAN.model_copy(update={"network": Network(classes=2)}),))


@pytest.mark.slow
def test_a_job_trains_one_and_fits_the_other_and_the_zoo_keeps_both(
    tmp_path: Path, use_settings: Callable[[dict[str, str]], Any], embedded: Zoo
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home")})
    library = tmp_path / "zoo"
    for part in ("policies", "recipes"):
        (library / part).mkdir(parents=True)
    policy = (ROOT / "zoo" / "policies" / "graphene-nominal.yaml").read_text()
    (library / "policies" / "graphene-nominal.yaml").write_text(policy)
    (library / "recipes" / "mixed.yaml").write_text(
        "id: mixed\n"
        "network: {name: unet, filters: 2, levels: 2}\n"
        "training: {steps: 3, batch: 2}\n"
        "tiles: {frames_per_policy: 6}\n"
        "members:\n"
        "  - {seed: 1, policy: graphene-nominal}\n"
        "  - {seed: 1, policy: graphene-nominal, network: {name: bandpass}}\n"
    )
    job = Job.model_validate({"kind": "train", "name": "mixed", "recipe": "mixed"})
    first = train(job, Library(library), str(tmp_path / "store"), executor="local")
    again = train(job, Library(library), str(tmp_path / "store"), executor="local")
    assert (first.resumed, again.resumed) == ((), (0, 1))
    embedded.register("mixed", list(again.members), job={})
    kept = embedded.members("mixed@1")
    assert [one.recipe.network.name for one in kept] == ["unet", "bandpass"]
    frames = labelled("graphene-nominal", 2, seed=5)
    assert f1([kept[1]], frames) == f1([first.members[1]], frames) > 0.9
