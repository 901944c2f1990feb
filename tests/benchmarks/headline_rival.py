"""AtomAI for the headline table: trained on our members' tiles, scored on our test frames.

It is run by a Python of its own environment (`atomai_rival.py`); here its maps become atoms, its
threshold chosen on simulated frames held out, as ours are.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MEMBERS = 2
PIXELS = 4_000 * 96 * 96  # of the tiles given to it: its trainer holds several copies
HELD_OUT_SEED = 1000
Array = np.ndarray[Any, Any]


def scores(
    out: Path, name: str, cycles: int, repetition: int, real: Mapping[str, float], python: str
) -> dict[str, Any]:
    """Train the rival on the tiles our members learned from, and score it on our test frames."""
    from manybeam.data.tiles import normalise, rescale
    from manybeam.jobs.train import plan_run
    from manybeam.settings import settings
    from manybeam.spec import Library, load_job

    library = Library(out / "zoo")
    job = load_job(out / "jobs" / f"{name}-ensemble-{repetition}.yaml")
    run = plan_run(job, library, settings().store_url, "local")
    spec = run.recipe.tiles
    frames, radii = _test_frames(job.measure, library, real)
    stacks, scale = {}, {}
    for condition, labelled in frames.items():
        seen = [rescale(one.frame_yx, one.pixel_size_pm, spec.pixel_size_pm) for one in labelled]
        local_px = spec.local_nm * 1000 / spec.pixel_size_pm
        stacks[condition] = np.stack([normalise(f, spec.normalise, local_px) for f, _ in seen])
        scale[condition] = seen[0][1]
    given = out / f"{name}-given-{repetition}.npz"
    made = out / f"{name}-atomai-{repetition}.npz"
    held_out = _held_out(run, repetition)
    stacks["held-out"] = np.stack([input_yx for input_yx, _ in held_out])
    tests = {f"test_{condition}": stack for condition, stack in stacks.items()}
    np.savez(given, **_tiles(run, repetition), **tests)
    script = str(Path(__file__).with_name("atomai_rival.py"))
    flags = ["--members", str(MEMBERS), "--cycles", str(cycles)]
    command = [python, script, str(given), str(made), *flags, "--seed", str(repetition)]
    # Nothing of this environment may reach that one.
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    subprocess.run(command, check=True, env={**plain, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"})
    given.unlink()
    radius_px = spec.mask_radius_pm / spec.pixel_size_pm
    with np.load(made) as maps:
        least = _best_threshold(maps["prob_held-out"], held_out, spec)
        row = {
            one: _scores(maps[f"prob_{one}"], frames[one], scale[one], radius_px, radii[one], least)
            for one in frames
        }
        report = json.loads(str(maps["report"]))
    return {"rows": {"atomai": row}, "policies": {}, "train_s": report["trained_s"], **report}


def _test_frames(
    measure: Any, library: Any, real: Mapping[str, float]
) -> tuple[dict[str, list[Any]], dict[str, float | None]]:
    """Return the test frames of each condition, and the match radius there."""
    from manybeam.jobs.test_sets import labelled_frames, plan_blocks
    from manybeam.spec.job import Measure

    frames: dict[str, list[Any]] = {}
    radii: dict[str, float | None] = {}
    asked = [(measure, measure.match_radius_pm)]
    asked += [(Measure(frames=(url,)), radius_pm) for url, radius_pm in real.items()]
    for one, radius_pm in asked:
        for block in plan_blocks(one, library, 0):
            frames.setdefault(block.name, []).extend(labelled_frames(block))
            radii[block.name] = radius_pm
    return frames, radii


def _tiles(run: Any, repetition: int) -> dict[str, Array]:
    """Return the tiles of all policies, as many of each, and their masks."""
    policies = sorted({member.policy for member in run.recipe.members})
    most = PIXELS // run.recipe.tiles.tile_px**2 // len(policies)
    rng = np.random.default_rng(repetition)
    inputs, masks = [], []
    for policy in policies:
        tiles = run.tiles(policy)
        which = np.sort(rng.permutation(len(tiles))[:most])
        inputs.append(tiles.input_nyx[which])
        masks.append(tiles.target_nyx[which])
    return {
        "tiles": np.concatenate(inputs).astype(np.float32),
        "masks": np.concatenate(masks).astype(np.uint8),
    }


def _held_out(run: Any, repetition: int) -> list[tuple[Array, Array]]:
    """Return tiles of every policy that nobody trained on, and their atoms, for a threshold."""
    from manybeam.data.simulation.simulate import simulate
    from manybeam.data.tiles import normalise, rescale, rescale_truth

    spec, pairs = run.recipe.tiles, []
    for policy in run.policies.values():
        made = simulate(policy, 8, seed=HELD_OUT_SEED + repetition)
        for frame, truth, size in zip(made.frames_nyx, made.truth, made.pixel_size_pm, strict=True):
            seen, scale = rescale(frame, float(size), spec.pixel_size_pm)
            seen = normalise(seen, spec.normalise, spec.local_nm * 1000 / spec.pixel_size_pm)
            side = min(spec.tile_px, *seen.shape)
            atoms = rescale_truth(truth, scale)
            inside = (atoms[:, :2] < side - 0.5).all(axis=1)
            if side == spec.tile_px:
                pairs.append((seen[:side, :side], atoms[inside]))
    return pairs


def _best_threshold(maps_nyx: Array, held_out: Sequence[tuple[Array, Array]], spec: Any) -> float:
    """Return the threshold at which the rival's F1 is greatest there, as ours are chosen."""
    from scipy.special import expit

    from manybeam.learn.nets.atoms import find_atoms
    from manybeam.learn.nets.prediction import NEIGHBOUR_SHARE
    from manybeam.learn.scoring.scores import f1_of, match_frame
    from manybeam.learn.training.threshold import LOGITS

    gap_px = NEIGHBOUR_SHARE * spec.mask_radius_pm / spec.pixel_size_pm
    counts_t3 = np.zeros((len(LOGITS), 3), np.int64)
    for map_yx, (_, truth) in zip(maps_nyx.astype(np.float32), held_out, strict=True):
        atoms = find_atoms(map_yx, float(expit(LOGITS[0])), gap_px)
        for place, least in enumerate(expit(LOGITS)):
            likely = atoms[atoms[:, 3] >= least]
            shape = (map_yx.shape[0], map_yx.shape[1])
            counts_t3[place] += match_frame(
                likely, truth, spec.pixel_size_pm, shape, spec.mask_radius_pm
            ).counts
    return float(expit(LOGITS[f1_of(counts_t3).argmax()]))


def _scores(
    prob_nyx: Array,
    labelled: Sequence[Any],
    scale: float,
    radius_px: float,
    radius_pm: float | None,
    least: float,
) -> dict[str, float]:
    """Return the scores of the rival's maps, its atoms found as ours are."""
    from manybeam.learn.nets.atoms import find_atoms
    from manybeam.learn.nets.prediction import NEIGHBOUR_SHARE
    from manybeam.learn.scoring.scores import match_frame, summarise

    matched, found = [], []
    for prob_yx, frame in zip(prob_nyx, labelled, strict=True):
        atoms = find_atoms(prob_yx.astype(np.float32), least, max(NEIGHBOUR_SHARE * radius_px, 1.0))
        atoms[:, :2] = (atoms[:, :2] + 0.5) / scale - 0.5
        shape = frame.frame_yx.shape
        matched.append(match_frame(atoms, frame.truth, frame.pixel_size_pm, shape, radius_pm))
        found.append(atoms)
    return summarise(matched, found).values()
