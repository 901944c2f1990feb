"""The selection table: choosing members by frame, against every rival, on drifts nobody trained on.

    make bench-selection                                # after, or in place of, make bench-science
    python tests/benchmarks/selection.py --out bench/science

It takes the ten members and the generalist of each repetition of `headline.py` (and has them
trained if they are not there), rehearses them on conditions drawn from policies, and selects on the
headline's test frames, of named conditions which no policy was made for. What is done already is
not done again.

Two pools: `ten` costs what the generalist costs; in `eleven` the generalist is a member too.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REHEARSED = 600  # frames of a calibration set
BLOCK = 30  # of them in one piece of work
FRAMES = 16  # test frames of a condition, those of the headline
FALSE_ATOMS = 0.05
POOLS = {"ten": range(10), "eleven": range(11)}
GENERALIST = 10
Array = np.ndarray[Any, Any]


def main() -> None:
    """Train, rehearse, select, and write the tables."""
    parser = argparse.ArgumentParser(description="The selection table")
    parser.add_argument("--out", type=Path, default=Path("bench/science"))
    parser.add_argument("--repetitions", type=int, nargs="+", default=[0, 1, 2])
    words = parser.parse_args()
    out, start = words.out.resolve(), time.monotonic()
    os.environ.update(MANYBEAM_HOME=str(out / "home"), MANYBEAM_ZOO=str(ROOT / "zoo"))
    os.environ["OMP_NUM_THREADS"] = "1"
    kept = out / "selection"
    kept.mkdir(parents=True, exist_ok=True)
    for repetition in words.repetitions:
        if not (kept / f"members-{repetition}.pkl").exists():
            _keep_members(out, kept, repetition)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for repetition in words.repetitions:
            _rehearse(pool, kept, repetition)
        work = {
            (repetition, name): pool.submit(_condition, kept, repetition, name)
            for repetition in words.repetitions
            for name in [*_conditions(), *ALIENS]
            if not (kept / f"{name}-{repetition}.json").exists()
        }
        for (repetition, name), result in work.items():
            _write(kept / f"{name}-{repetition}.json", json.dumps(result.result()))
            print(f"{name}, repetition {repetition}: done", file=sys.stderr, flush=True)
    from selection_table import report

    text = report(kept, words.repetitions)
    _write(out / "selection.md", text)
    print(text)
    print(f"this call took {(time.monotonic() - start) / 60:.1f} min")


def _keep_members(out: Path, kept: Path, repetition: int) -> None:
    """Read the members of one repetition out of the zoo, trained first if they are not in it."""
    from manybeam.errors import UnknownRef
    from manybeam.zoo.registry import Zoo

    zoo, names = Zoo(), [f"graphene-{kind}-{repetition}" for kind in ("ensemble", "generalist")]
    try:
        members = [member for name in names for member in zoo.members(name)]
    except UnknownRef:
        command = [sys.executable, str(HERE / "headline.py"), "--out", str(out)]
        command += ["--families", "graphene", "--repetitions", str(repetition + 1)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        members = [member for name in names for member in zoo.members(name)]
    numbered = [replace(member, index=place) for place, member in enumerate(members)]
    _write(kept / f"members-{repetition}.pkl", pickle.dumps(numbered))


def _rehearse(pool: ProcessPoolExecutor, kept: Path, repetition: int) -> None:
    """Make the calibration set of one repetition, if it is not there yet."""
    from manybeam.learn.analysis.calibration_set import CalibrationSet

    path = kept / f"table-{repetition}.npz"
    if path.exists():
        return
    start = time.monotonic()
    spans = [(a, min(a + BLOCK, REHEARSED)) for a in range(0, REHEARSED, BLOCK)]
    parts = pool.map(_part, [(kept, repetition, span) for span in spans])
    table = CalibrationSet.joined([CalibrationSet.from_bytes(part) for part in parts])
    _write(path, table.to_bytes())
    took = time.monotonic() - start
    print(f"rehearsed {len(table)} frames in {took:.0f} s", file=sys.stderr, flush=True)


def _part(work: tuple[Path, int, tuple[int, int]]) -> bytes:
    from manybeam.jobs.calibrate import SEED, usual_policies
    from manybeam.learn.analysis.calibration_set import measure_calibration_set

    kept, repetition, span = work
    ensemble = _ensemble(kept, repetition)
    policies = usual_policies(ensemble, _library())  # it has `members`, as a record has
    return measure_calibration_set(ensemble, policies, *span, seed=SEED + repetition).to_bytes()


def _condition(kept: Path, repetition: int, name: str) -> dict[str, Any]:
    """Return what every way to choose came to on the frames of one condition."""
    from manybeam.learn.analysis.fitness import LATTICES
    from manybeam.learn.analysis.frame_analysis import analyse

    ensemble, rows = _ensemble(kept, repetition), []
    frames = _frames(name)
    normed = _re_estimated(ensemble, frames)
    for frame in frames:
        begun = time.perf_counter()
        seen = analyse(ensemble, frame.frame_yx, frame.pixel_size_pm, LATTICES["graphene"])
        took = time.perf_counter() - begun
        rows.append(
            {"look_s": took, "normed": _worth(_atoms(normed, frame), frame)}
            | {pool: _chosen(_known(kept, repetition, pool), seen, frame, pool) for pool in POOLS}
        )
    return {"frames": rows}


def _re_estimated(ensemble: Any, frames: Sequence[Any]) -> Any:
    """Return the ten members with batch norms re-estimated on half of a condition's frames."""
    from manybeam.learn.adaptation.batch_norm import re_estimated
    from manybeam.learn.nets.ensemble import Ensemble

    half = np.stack([frame.frame_yx for frame in frames[::2]])
    size = frames[0].pixel_size_pm
    return Ensemble([re_estimated(one, half, size) for one in ensemble.members[:GENERALIST]])


def _atoms(ensemble: Any, frame: Any) -> Array:
    return np.asarray(ensemble.predict(frame.frame_yx, frame.pixel_size_pm).atoms)


def _chosen(known: Any, seen: Any, frame: Any, pool: str) -> dict[str, Any]:
    """Return the forecasts of one pool on one frame, and what each answer was worth."""
    from manybeam.learn.analysis.fitness import SCORES
    from manybeam.predictor.condition_distance import Near
    from manybeam.predictor.selection import _calibrated, _Words
    from manybeam.zoo.matrix import Matrix

    members = list(POOLS[pool])
    seen = replace(
        seen, prediction=seen.prediction.subset(members), score_mf=seen.score_mf[members]
    )
    words = _Words({}, Near(np.inf), {}, known.table.structure)
    begun = time.perf_counter()
    selection = _calibrated(seen, Matrix((), members), known, words, None, FALSE_ATOMS)
    took = time.perf_counter() - begun
    by_member = {one.member: one for one in selection.candidates}
    whole = seen.prediction
    answers = {
        one.name: whole.subset(list(one.weights), list(one.weights.values()))
        for one in selection.answerers
    }
    answers["selected"] = whole.subset(list(selection.weights), list(selection.weights.values()))
    entropy = [float(-np.mean(_entropy(whole.subset([m]).mean_yx))) for m in members]
    return {
        "members": [_worth(atoms, frame) for atoms in whole.member_atoms],
        "predicted": [_interval(by_member[m]) for m in members],
        "scores": {n: seen.score_mf[:, i].tolist() for i, n in enumerate(SCORES)},
        "rehearsed": [by_member[m].components["simulated"] for m in members],
        "resembled": [by_member[m].components["resembled"] for m in members],
        "entropy": entropy,
        "answers": {name: _worth(one.atoms, frame) for name, one in answers.items()},
        "promised": {one.name: _interval(one) for one in selection.answerers},
        "chosen": list(selection.chosen),
        "answered": selection.answerers[0].name,
        "best_promise": selection.answerers[0].predicted_f1,
        "distance": selection.distance,
        "verdict": selection.verdict,
        "calibration": _calibration(selection, answers["selected"], frame),
        "select_s": took,
    }


def _worth(atoms: Array, frame: Any) -> dict[str, Any]:
    """Return counts, and what F1 does not show: vacancies filled, dopants and edges found."""
    from manybeam.learn.scoring.scores import match_frame

    if frame.truth is None:
        return {"counts": [0, len(atoms), 0]}
    shape, size = frame.frame_yx.shape, frame.pixel_size_pm
    verdict = match_frame(atoms, frame.truth, size, shape)
    worth: dict[str, Any] = {"counts": list(verdict.counts)}
    targets = frame.targets
    if targets is not None:
        from manybeam.learn.scoring.scores import match

        is_found = np.zeros(len(frame.truth), bool)
        is_found[verdict.match.truth_index] = True
        inside = verdict.truth_counts
        for kind in ("dopant", "edge"):
            which = getattr(targets, f"is_{kind}") & inside
            worth[kind] = [int((which & is_found).sum()), int(which.sum())]
        filled = len(match(atoms, targets.vacancies, verdict.radius_pm / size))
        worth["filled"] = [filled if len(targets.vacancies) else 0, len(targets.vacancies)]
    return worth


def _calibration(selection: Any, answer: Any, frame: Any) -> dict[str, Any]:
    """Return probabilities before and after, the bound, and the errors of positions."""
    from manybeam.learn.scoring.scores import match_frame

    if frame.truth is None:
        return {}
    one, shape, size = selection.transferred, frame.frame_yx.shape, frame.pixel_size_pm
    verdict = match_frame(answer.atoms, frame.truth, size, shape)
    counted = verdict.found_counts
    free = replace(one, threshold=None)
    error_pm = np.sqrt(verdict.square_pm)
    kept = one.threshold is not None
    above = answer.atoms[counted, 3] >= (one.threshold or 0.0)
    spread = np.nan_to_num(np.hypot(answer.atoms[:, 4], answer.atoms[:, 5]), nan=1e3)
    return {
        "raw": answer.atoms[counted, 3].tolist(),
        "calibrated": free.apply(answer.atoms)[counted, 3].tolist(),
        "is_true": verdict.is_true[counted].tolist(),
        "spread": spread[counted].tolist(),
        "promised": kept,
        "kept": [int(above.sum()), int((above & ~verdict.is_true[counted]).sum())],
        "within": [int((error_pm <= one.position_pm).sum()), len(error_pm)],
    }


def _interval(one: Any) -> list[float]:
    return [float(one.predicted_f1), float(one.low), float(one.high)]


def _entropy(prob_yx: Array) -> Array:
    from manybeam.learn.nets.answer import entropy

    return entropy(prob_yx)


@lru_cache(maxsize=1)
def _ensemble(kept: Path, repetition: int) -> Any:
    from manybeam.learn.nets.ensemble import Ensemble

    return Ensemble(pickle.loads((kept / f"members-{repetition}.pkl").read_bytes()))


@lru_cache(maxsize=2)
def _known(kept: Path, repetition: int, pool: str) -> Any:
    """Return what the calibration set teaches about the members of a pool."""
    from manybeam.learn.analysis.calibration_set import CalibrationSet
    from manybeam.predictor.performance import PerformancePredictor

    table = CalibrationSet.from_bytes((kept / f"table-{repetition}.npz").read_bytes())
    members = list(POOLS[pool])
    return PerformancePredictor(
        replace(
            table,
            members=tuple(members),
            score_nmf=table.score_nmf[:, members],
            count_nm3=table.count_nm3[:, members],
            belief_km=table.belief_km[:, members],
        )
    )


@lru_cache(maxsize=1)
def _library() -> Any:
    from manybeam.spec import Library

    return Library(ROOT / "zoo")


def _conditions() -> list[str]:
    return sorted(name for name in _library().conditions if name.startswith("graphene-"))


def _frames(name: str) -> list[Any]:
    """Return the test frames of a condition, or those that are none of graphene at all."""
    from manybeam.jobs.test_sets import labelled_frames, plan_blocks
    from manybeam.spec.job import Measure

    if name in ALIENS:
        return ALIENS[name]()
    measure = Measure(conditions=(name,), frames_per_condition=FRAMES)
    return [
        frame for block in plan_blocks(measure, _library(), 0) for frame in labelled_frames(block)
    ]


def _alien(pictures: Sequence[Array]) -> list[Any]:
    from manybeam.jobs.test_sets import LabelledFrame

    return [LabelledFrame(np.asarray(one, np.float32), None, 16.0) for one in pictures]  # type: ignore[arg-type]


def _noise() -> list[Any]:
    rng = np.random.default_rng(1)
    return _alien([rng.poisson(rate, (128, 128)) for rate in (0.5, 2, 10, 100) for _ in range(4)])


def _photograph() -> list[Any]:
    """Parts of the photograph that matplotlib brings."""
    import matplotlib.cbook
    from PIL import Image

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        grey = np.asarray(Image.open(file).convert("L"), float)
    places = [(y, x) for y in (0, 130, 260, 390) for x in (0, 120, 240, 360)]
    return _alien([grey[y : y + 128, x : x + 128] for y, x in places])


def _diffraction() -> list[Any]:
    """Power spectra of graphene frames, as a diffraction pattern taken for an image."""
    rng = np.random.default_rng(2)
    pictures = []
    for frame in _frames("graphene-60kv-nominal"):
        power = np.abs(np.fft.fftshift(np.fft.fft2(frame.frame_yx))) ** 2
        pictures.append(rng.poisson(np.minimum(power / np.median(power), 200.0)))
    return _alien(pictures)


def _empty() -> list[Any]:
    """The bare detector: counts of a beam that meets nothing, smooth illumination."""
    rng = np.random.default_rng(3)
    slope = np.linspace(0.5, 1.5, 128)[None, :] * np.ones((128, 1))
    return _alien([rng.normal(100 * slope, 1 + number) for number in range(16)])


ALIENS: Mapping[str, Callable[[], list[Any]]] = {
    "noise": _noise,
    "photograph": _photograph,
    "diffraction": _diffraction,
    "empty": _empty,
}


def _write(path: Path, content: str | bytes) -> None:
    """Write a result whole or not at all."""
    from manybeam.data.disk import write_files

    write_files({path: content if isinstance(content, bytes) else content.encode()})


if __name__ == "__main__":
    main()
