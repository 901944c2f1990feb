"""The adaptation table: one gated round on eight unlabelled frames, with each teacher.

    python tests/benchmarks/adaptation.py --out bench/science      # after selection.py

On the drifts that the ensemble does worst on it adapts the member that selection picks among the
ten, and, as if there were no other, the nominal member; it scores them on the headline's test
frames. Beside them: the plain mean, batch norms re-estimated, self-training of one member alone,
and a network of the same recipe trained on that very condition with truth, which is what
adaptation could reach.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

DRIFTS = ("16k", "dirty", "extreme", "mix-a", "mix-c", "verylowdose")
TEACHERS = ("twin", "pseudo", "both", "self-training")
# Whom to adapt, and by which teachers; beside: the adapted member joins its parent.
STARTS = {"picked": TEACHERS, "nominal": ("twin", "both"), "nominal beside": ("twin",)}
FRAMES = 8  # unlabelled
LEAST_GAP = 0.02  # F1 between the mean and truth below which there is nothing to close
SEED = 880_001  # of the unlabelled frames: far from test, training and held-out frames
Array = np.ndarray[Any, Any]


def main() -> None:
    """Adapt on every drift, with every teacher; write the table."""
    from manybeam.data.disk import write_files

    parser = argparse.ArgumentParser(description="The adaptation table")
    parser.add_argument("--out", type=Path, default=Path("bench/science"))
    parser.add_argument("--repetitions", type=int, nargs="+", default=[0, 1, 2])
    words = parser.parse_args()
    out, begun = words.out.resolve(), time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    made = out / "adaptation"
    made.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        work = {
            made / f"{drift}-{start}-{r}.json": pool.submit(_drift, out, drift, start, r)
            for r in words.repetitions
            for start in STARTS
            for drift in DRIFTS
            if not (made / f"{drift}-{start}-{r}.json").exists()
        }
        for path, result in work.items():
            write_files({path: json.dumps(result.result()).encode()})
            print(path.stem, "done", file=sys.stderr, flush=True)
    text = _report(made, words.repetitions)
    (out / "adaptation.md").write_text(text)
    print(text)
    print(f"this call took {(time.monotonic() - begun) / 60:.1f} min")


def _drift(out: Path, drift: str, start: str, repetition: int) -> dict[str, Any]:
    """Return F1 of every rival on one drift, and what the gate said to each teacher."""
    import selection

    from manybeam.data.simulation.simulate import simulate
    from manybeam.learn.adaptation.batch_norm import re_estimated
    from manybeam.learn.nets.ensemble import Ensemble

    ensemble = selection._ensemble(out / "selection", repetition).subset(range(10))
    condition = selection._library().conditions[f"graphene-60kv-{drift}"]
    new = simulate(condition, FRAMES, seed=SEED + repetition).frames_nyx
    size = float(condition.scan.pixel_size_pm)
    tests = selection._frames(condition.id)
    place = _picked(out, repetition, new[0], size) if start == "picked" else 0
    parent = ensemble.members[place]
    rows: dict[str, Any] = {
        f"{start} member": _f1(Ensemble([parent]), tests),
        f"{start}, norms re-estimated": _f1(Ensemble([re_estimated(parent, new, size)]), tests),
    }
    told: dict[str, Any] = {"policy": parent.policy, "before": _everywhere(parent, drift)}
    if start == "picked":
        truth, told["truth_s"] = _trained_with_truth(parent, condition, repetition)
        rows |= {"mean of ten": _f1(ensemble, tests)}
        rows |= {"trained with truth": _f1(Ensemble([truth]), tests)}
    for teacher in STARTS[start]:
        whole = Ensemble([parent]) if teacher == "self-training" else ensemble
        kind = "pseudo" if teacher == "self-training" else teacher
        is_added = start.endswith("beside")
        one = _adapted(whole, parent.index, new, size, kind, repetition, beside=is_added)
        rows |= {f"{start}, {teacher}": _f1(Ensemble([one["member"]]), tests)}
        rows |= {f"{start}, {teacher}, no gate": _f1(Ensemble([one["tuned"]]), tests)}
        # Beside its parent it takes nothing away; the ensemble was judged with and without it.
        lost = one["accepted"] and not is_added
        loss = told["before"] - _everywhere(one["member"], drift) if lost else 0.0
        told[teacher] = {key: one[key] for key in ("accepted", "why", "wall_s")} | {"loss": loss}
    return {"rows": rows, "told": told}


def _picked(out: Path, repetition: int, frame_yx: Array, size: float) -> int:
    """Return the member of the ten that selection picks for a frame."""
    import selection

    from manybeam.learn.analysis.fitness import LATTICES
    from manybeam.learn.analysis.frame_analysis import analyse

    ensemble = selection._ensemble(out / "selection", repetition).subset(range(10))
    known = selection._known(out / "selection", repetition, "ten")
    seen = analyse(ensemble, frame_yx, size, LATTICES["graphene"])
    promised = known.predict_f1(seen, [{member: 1.0} for member in range(10)])
    return int(np.argmax([one.f1 for one in promised]))


def _adapted(
    ensemble: Any,
    member: int,
    new: Array,
    size: float,
    teacher: Any,
    repetition: int,
    *,
    beside: bool = False,
) -> dict[str, Any]:
    """Return what one round makes of a member: as the gate leaves it, and as it was tuned."""
    import selection

    from manybeam.data.simulation.simulate import simulate
    from manybeam.errors import ManybeamError
    from manybeam.jobs.adapt import HELD_OUT_FRAMES, HELD_OUT_SEED
    from manybeam.learn.adaptation.rounds import adapt

    library = selection._library()
    held = {
        name: simulate(library.conditions[name], HELD_OUT_FRAMES, seed=HELD_OUT_SEED + rank)
        for rank, name in enumerate(selection._conditions())
    }
    parent = ensemble.subset([member]).members[0]
    begun = time.perf_counter()
    try:
        found = adapt(
            ensemble,
            new,
            size,
            imaging=library.policies["graphene-any"],
            held_out=held,
            policies=library.policies,
            members=[member],
            labels=teacher,
            beside=beside,
            seed=repetition,
        )
    except ManybeamError as error:
        took = time.perf_counter() - begun
        nothing = {"member": parent, "tuned": parent, "accepted": False}
        return nothing | {"why": error.what, "wall_s": took}
    children = [one for one in found.members if found.parents.get(one.index) == member]
    after = children[-1] if children else parent
    return {
        "member": after,
        "tuned": found.tuned[0] if found.tuned else parent,
        "accepted": found.accepted,
        "why": found.why,
        "wall_s": found.wall_s,
    }


def _trained_with_truth(parent: Any, condition: Any, repetition: int) -> tuple[Any, float]:
    """Return a network of the parent's recipe trained on labelled frames of the condition."""
    from manybeam.data.simulation.simulate import simulate
    from manybeam.data.tiles import Tiles
    from manybeam.learn.adaptation.pseudo_labels import simulated_tiles
    from manybeam.learn.training.member import train_member
    from manybeam.learn.training.threshold import centred
    from manybeam.spec import MemberPlan, Policy

    numbers = condition.model_dump(exclude={"origin"})
    policy = Policy.model_validate(numbers)
    spec = parent.recipe.tiles
    seed = SEED + 100 + repetition
    tiles = Tiles(*simulated_tiles(policy, spec, count=640, seed=seed), (condition.id,), "truth")
    plan = MemberPlan(seed=7000 + repetition, policy=condition.id)
    made = train_member(parent.recipe, plan, 0, tiles)
    fresh = simulate(condition, 32, seed=seed + 1)
    labelled = list(
        zip(fresh.frames_nyx, fresh.truth, map(float, fresh.pixel_size_pm), strict=True)
    )
    return centred(made, labelled), made.wall_s


def _everywhere(member: Any, drift: str) -> float:
    """Return a member's mean F1 on test frames of all conditions but the drift and the extremes."""
    import selection

    from manybeam.learn.nets.ensemble import Ensemble

    alone = Ensemble([replace(member, index=0)])
    left_out = (drift, "extreme", "16k")
    names = [one for one in selection._conditions() if not one.endswith(left_out)]
    return float(np.mean([_f1(alone, selection._frames(name)[:8]) for name in names]))


def _f1(ensemble: Any, frames: list[Any]) -> float:
    from selection_table import f1

    from manybeam.learn.scoring.scores import match_frame

    counts = []
    for frame in frames:
        atoms = ensemble.predict(frame.frame_yx, frame.pixel_size_pm).atoms
        shape = frame.frame_yx.shape
        counts.append(match_frame(atoms, frame.truth, frame.pixel_size_pm, shape).counts)
    return f1(np.array(counts))


def _report(made: Path, repetitions: list[int]) -> str:
    """Return the tables as Markdown, of what has been made so far."""
    places = [(drift, r) for drift in DRIFTS for r in repetitions]
    files = {
        (start, *place): made / f"{place[0]}-{start}-{place[1]}.json"
        for start in STARTS
        for place in places
    }
    runs = {key: json.loads(path.read_text()) for key, path in files.items() if path.exists()}
    f1: dict[Any, dict[str, float]] = {place: {} for place in places}
    for (_, *place), run in runs.items():
        f1[tuple(place)] |= run["rows"]
    lines = [f"| F1 | {' | '.join(DRIFTS)} |", "|---" * (len(DRIFTS) + 1) + "|"]
    for row in sorted({row for rows in f1.values() for row in rows}):
        cells = [
            _cell([f1[drift, r][row] for r in repetitions if row in f1[drift, r]])
            for drift in DRIFTS
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + "\n".join(_gates(runs, f1)) + "\n"


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _gates(runs: Mapping[Any, Any], f1: Mapping[Any, Mapping[str, float]]) -> list[str]:
    """Return for each teacher how often it passed, the gap it closed, its losses and its time."""
    lines = [
        "| | accepted | gap closed, from the mean of ten to truth | worst loss elsewhere | s |",
        "|---" * 5 + "|",
    ]
    pairs = [(start, teacher) for start in STARTS for teacher in STARTS[start]]
    for start, teacher in pairs:
        told = [run["told"][teacher] for key, run in runs.items() if key[0] == start]
        closed = [
            (one[f"{start}, {teacher}"] - one["mean of ten"]) / gap
            for one in f1.values()
            if f"{start}, {teacher}" in one
            and (gap := one["trained with truth"] - one["mean of ten"]) > LEAST_GAP
        ]
        if not told:
            continue
        accepted = f"{sum(one['accepted'] for one in told)} of {len(told)}"
        loss, seconds = max(one["loss"] for one in told), np.mean([one["wall_s"] for one in told])
        share = f"{np.mean(closed):.2f}" if closed else ""
        lines.append(f"| {start}, {teacher} | {accepted} | {share} | {loss:.3f} | {seconds:.0f} |")
    return lines


if __name__ == "__main__":
    main()
