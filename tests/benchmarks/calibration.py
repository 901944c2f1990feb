"""The tables of decision 0009: what calibration and the bound on false atoms are worth.

    python tests/benchmarks/calibration.py [--frames 240] [--steps 300]

Three members are trained (two general, one nominal), then measured on frames none of them saw.
Everything is fitted on some frames of a condition and measured on the others, many times over.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manybeam.data.simulation.simulate import simulate
from manybeam.data.tiles import Tiles
from manybeam.learn.adaptation.pseudo_labels import simulated_tiles
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.scoring.calibration import Calibration, bound, false_share, fit
from manybeam.learn.scoring.scores import match_frame, reliability
from manybeam.learn.training.member import train_member
from manybeam.spec.files import load_condition, load_policy
from manybeam.spec.recipe import MemberPlan, Recipe, TileSpec, Training

ZOO = Path(__file__).parents[2] / "zoo"
CONDITIONS = ("nominal", "dirty", "mix-a", "16k", "mix-c", "extreme")
MEMBERS = ((0, "graphene-general"), (1, "graphene-general"), (2, "graphene-nominal"))
SHAPE = (128, 128)
TILES = 256
FALSE_ATOMS, CONFIDENCE, FITTED = 0.05, 0.9, 100

Frames = tuple[list[Any], list[Any]]  # of each frame: probabilities, and whether they are atoms


def main() -> None:
    """Train, measure and print two tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=240, help="of each condition")
    parser.add_argument("--steps", type=int, default=300, help="of each member's training")
    parser.add_argument("--repeats", type=int, default=200)
    words = parser.parse_args()
    torch.set_num_threads(1)
    ensemble = Ensemble([_trained(*each, words.steps) for each in enumerate(MEMBERS)])
    frames = {name: _answered(ensemble, name, words.frames) for name in CONDITIONS}
    rng = np.random.default_rng(0)
    print("| condition | ECE | own calibration | that of nominal | that of all others |")
    print("|---|---|---|---|---|")
    for name in CONDITIONS:
        print(
            f"| {name} | " + " | ".join(f"{one:.3f}" for one in _errors(frames, name, rng)) + " |"
        )
    print("\n| condition | false atoms | under its bound | kept | held | nominal's | all others' |")
    print("|---|---|---|---|---|---|---|")
    for name in CONDITIONS:
        print(f"| {name} | " + " | ".join(_bounds(frames, name, rng, words.repeats)) + " |")


def _trained(index: int, plan: tuple[int, str], steps: int) -> Any:
    seed, policy = plan
    spec = TileSpec()
    known = load_policy(ZOO / "policies" / f"{policy}.yaml")
    tiles = Tiles(*simulated_tiles(known, spec, count=TILES, seed=11), (policy,), "0" * 32)
    member = MemberPlan(seed=seed, policy=policy)
    recipe = Recipe(id="measured", training=Training(steps=steps), members=(member,))
    return train_member(recipe, member, index, tiles)


def _answered(ensemble: Ensemble, name: str, count: int) -> Frames:
    condition = load_condition(ZOO / "conditions" / f"graphene-60kv-{name}.yaml")
    made = simulate(condition, count, seed=777, shape=SHAPE)
    probability, is_true = [], []
    for frame, size, truth in zip(made.frames_nyx, made.pixel_size_pm, made.truth, strict=True):
        atoms = ensemble.predict(frame, float(size)).atoms
        matched = match_frame(atoms, truth, float(size), SHAPE)
        probability.append(atoms[matched.found_counts, 3])
        is_true.append(matched.is_true[matched.found_counts])
    return probability, is_true


def _errors(frames: dict[str, Frames], name: str, rng: np.random.Generator) -> list[float]:
    """Return ECE raw, by its own calibration on held-out frames, by nominal's, by the others'."""
    here, half = frames[name], len(frames[name][0]) // 2
    own, raw = [], []
    for _ in range(20):
        order = rng.permutation(len(here[0]))
        first, rest = _some(here, order[:half]), _some(here, order[half:])
        raw.append(_ece(rest))
        own.append(_ece(rest, _fitted(first)))
    others = _together(frames, name, half)
    return [
        float(np.mean(raw)),
        float(np.mean(own)),
        _ece(here, _fitted(frames["nominal"])),
        _ece(here, _fitted(others)),
    ]


def _bounds(
    frames: dict[str, Frames], name: str, rng: np.random.Generator, repeats: int
) -> list[str]:
    here, shares, kept, held = frames[name], [], [], 0
    for _ in range(repeats):
        order = rng.permutation(len(here[0]))
        threshold = bound(*_some(here, order[:FITTED]), FALSE_ATOMS, CONFIDENCE)
        rest = _some(here, order[FITTED:])
        shares.append(false_share(*rest, threshold or 2.0).mean())
        true = np.concatenate([p[t] for p, t in zip(*rest, strict=True)])
        kept.append((true >= (threshold or 2.0)).mean())
        held += shares[-1] <= FALSE_ATOMS
    others = _together(frames, name, FITTED)
    foreign = [bound(*given, FALSE_ATOMS, CONFIDENCE) for given in (frames["nominal"], others)]
    return [
        f"{false_share(*here, 0.5).mean():.3f}",
        f"{np.mean(shares):.3f}",
        f"{np.mean(kept):.2f}",
        f"{held / repeats:.3f}",
        *(f"{false_share(*here, threshold or 2.0).mean():.3f}" for threshold in foreign),
    ]


def _some(frames: Frames, which: Sequence[int]) -> Frames:
    return [frames[0][index] for index in which], [frames[1][index] for index in which]


def _together(frames: dict[str, Frames], without: str, count: int) -> Frames:
    """Return frames of all other conditions, mixed."""
    rest = [part for name, part in frames.items() if name != without]
    probability = [one for part in rest for one in part[0][:count]]
    is_true = [one for part in rest for one in part[1][:count]]
    return _some((probability, is_true), np.random.default_rng(1).permutation(len(probability)))


def _fitted(frames: Frames) -> Calibration:
    temperature, shift = fit(*map(np.concatenate, frames))
    # Its probabilities are measured on other conditions too, so it names none to apply it to.
    return Calibration("measured", "", temperature, shift)


def _ece(frames: Frames, calibration: Calibration | None = None) -> float:
    probability, is_true = map(np.concatenate, frames)
    claimed = calibration.probability(probability) if calibration else probability
    return reliability(claimed, is_true).ece


if __name__ == "__main__":
    main()
