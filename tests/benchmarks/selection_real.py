"""Selection on real frames with marked atoms, by members trained and rehearsed on simulations only.

    python tests/benchmarks/selection_real.py --out bench/science     # after headline.py

The members of each repetition of the heavy atoms, with the generalist as one of them. There is no
lattice to judge by, and every real frame is unlike any simulated one in ways nobody wrote down.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
REHEARSED = 240
SEED = 77_003
Array = np.ndarray[Any, Any]


def main() -> None:
    """Rehearse, select on every real frame, print the table."""
    parser = argparse.ArgumentParser(description="Selection on real frames")
    parser.add_argument("--out", type=Path, default=Path("bench/science"))
    parser.add_argument("--repetitions", type=int, nargs="+", default=[0, 1, 2])
    words = parser.parse_args()
    out, start = words.out.resolve(), time.monotonic()
    os.environ.update(MANYBEAM_HOME=str(out / "home"), MANYBEAM_ZOO=str(ROOT / "zoo"))
    tables = [_repetition(out, repetition) for repetition in words.repetitions]
    print(_report(tables))
    print(f"{(time.monotonic() - start) / 60:.1f} min")


def _repetition(out: Path, repetition: int) -> dict[str, dict[str, float]]:
    """Return F1 and what was promised, by set of real frames and way to answer."""
    from headline import FAMILIES

    from manybeam.learn.nets.ensemble import Ensemble
    from manybeam.predictor.performance import PerformancePredictor

    members = _members(repetition)
    ensemble = Ensemble(members)
    known = PerformancePredictor(_table(out, ensemble, repetition))
    weights = {name: round(value, 2) for name, value in known.weights.items()}
    print(f"repetition {repetition}: forecast weighs {weights}", file=sys.stderr, flush=True)
    return {
        name: _on(out / "real" / name, real.radius_pm, ensemble, known)
        for name, real in FAMILIES["heavy"].real.items()
    }


def _members(repetition: int) -> list[Any]:
    from manybeam.zoo.registry import Zoo

    names = [f"heavy-{kind}-{repetition}" for kind in ("ensemble", "generalist")]
    found = [member for name in names for member in Zoo().members(name)]
    return [replace(member, index=place) for place, member in enumerate(found)]


def _table(out: Path, ensemble: Any, repetition: int) -> Any:
    from manybeam.data.disk import write_files
    from manybeam.jobs.calibrate import usual_policies
    from manybeam.learn.analysis.calibration_set import CalibrationSet, measure_calibration_set
    from manybeam.spec import Library

    path = out / f"heavy-table-{repetition}.npz"
    if not path.exists():
        policies = usual_policies(ensemble, Library(ROOT / "zoo"))
        table = measure_calibration_set(ensemble, policies, 0, REHEARSED, seed=SEED + repetition)
        write_files({path: table.to_bytes()})
    return CalibrationSet.from_bytes(path.read_bytes())


def _on(url: Path, radius_pm: float, ensemble: Any, known: Any) -> dict[str, float]:
    from selection_table import f1

    from manybeam.data.frames import FrameSet
    from manybeam.learn.analysis.frame_analysis import analyse
    from manybeam.learn.scoring.scores import match_frame
    from manybeam.predictor.condition_distance import Near
    from manybeam.predictor.selection import _calibrated, _Words
    from manybeam.zoo.matrix import Matrix

    frames = FrameSet.open(str(url))
    counts: dict[str, list[Sequence[int]]] = {}
    promises, distances, inside = [], [], []
    for i in range(len(frames)):
        frame, truth, size = frames.frame(i), frames.truth(i), frames.pixel_size_pm(i)
        whole = ensemble.predict(frame, size)
        seen = analyse(ensemble, frame, size, None)
        words = _Words({}, Near(np.inf), {}, known.table.structure)
        chosen = _calibrated(seen, Matrix((), ensemble.indices), known, words, None, 0.0)
        answers = {
            f"member {m:02d}": a for m, a in zip(whole.members, whole.member_atoms, strict=True)
        }
        answers["mean of all"] = whole.atoms
        answers["selected, one member"] = whole.member_atoms[chosen.candidates[0].member]
        answers["selected"] = chosen.answer(whole).atoms
        worth = {
            name: match_frame(a, truth, size, frame.shape, radius_pm).counts
            for name, a in answers.items()
        }
        for name, one in worth.items():
            counts.setdefault(name, []).append(one)
        best = chosen.answerers[0]
        promises.append(best.predicted_f1)
        distances.append(chosen.distance)
        inside.append(best.low <= f1(np.array(worth["selected"])) <= best.high)
    found = {name: f1(np.array(rows)) for name, rows in counts.items()}
    alone = [name for name in found if name.startswith("member")]
    return {
        "random": float(np.mean([found[name] for name in alone])),
        "best member": max(found[name] for name in alone),
        **{name: found[name] for name in ("mean of all", "selected, one member", "selected")},
        "generalist": found[alone[-1]],
        "promised": float(np.mean(promises)),
        "interval holds": float(np.mean(inside)),
        "distance": float(np.median(distances)),
    }


def _report(tables: Sequence[dict[str, dict[str, float]]]) -> str:
    names = list(tables[0])
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in tables[0][names[0]]:
        cells = []
        for name in names:
            values = [table[name][row] for table in tables]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
