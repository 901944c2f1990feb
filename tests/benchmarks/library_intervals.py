"""90 % intervals of two libraries (crepes, mapie) beside those of `predictor.performance`.

All of them get the same calibration set and the same point prediction, the monotone index of
decision 0013; only the interval around it differs. They are compared on frames that no part of it
has seen: drawn from the policies of the calibration set, and of the named conditions.

Members and calibration set are those of a demo: `make demo`, then
`MANYBEAM_HOME=manybeam-demo/platform python tests/benchmarks/library_intervals.py`. The libraries
are no dependency of the project: `pip install crepes mapie`, or a folder of them in PYTHONPATH.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from manybeam.jobs.calibrate import SEED, usual_policies
from manybeam.learn.analysis.calibration_set import CalibrationSet, measure_calibration_set
from manybeam.predictor.f1.index import BINS, FOLDS, LEAST_BIN, _monotone
from manybeam.predictor.performance import INDEX, PerformancePredictor, _Row
from manybeam.settings import settings
from manybeam.spec import Library, Policy
from manybeam.zoo.calibration_sets import KIND
from manybeam.zoo.registry import Zoo

CONFIDENCE = 0.9
Array = np.ndarray[Any, Any]
Interval = tuple[Array, Array]


@dataclass(frozen=True, eq=False)
class Examples:
    """Members on frames: the index, the F1 it predicts and the F1 it came to.

    Attributes:
        index_n: weighed sum of the parts.
        predicted_n: F1 predicted, by a fit without the frame where it was fitted to.
        f1_n: F1 of the member on the frame.
        frame_n: number of the frame.
        ours_n: interval of ours; none of the calibration set's own.
        chosen_n: ours for the member that was chosen because its prediction is the highest.
    """

    index_n: Array
    predicted_n: Array
    f1_n: Array
    frame_n: Array
    ours_n: Interval | None = None
    chosen_n: Interval | None = None


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ref", default="graphene", help="version with a calibration set")
    parser.add_argument("--drawn", type=int, default=200, help="fresh frames drawn from policies")
    parser.add_argument("--named", type=int, default=4, help="frames of each named condition")
    parser.add_argument(
        "--seed", type=int, default=77, help="of the frames, beside that of the set"
    )
    words = parser.parse_args()
    start, zoo = time.perf_counter(), Zoo()
    record, ensemble = zoo.resolve(words.ref), zoo.ensemble(words.ref)
    library = Library(settings().zoo)
    table = CalibrationSet.from_bytes(zoo.attached(words.ref, KIND) or b"")
    known = PerformancePredictor(table)
    named = [_fixed(library, name) for name in library.conditions if name.startswith("graphene-")]
    sets = {
        f"{words.drawn} drawn frames": (usual_policies(record, library), words.drawn),
        f"{len(named)} named conditions, {words.named} frames each": (
            named,
            words.named * len(named),
        ),
    }
    fitted = _calibration_examples(known)
    print(f"{len(table)} calibration frames, {len(table.members)} members")
    for title, (policies, count) in sets.items():
        fresh = measure_calibration_set(ensemble, policies, 0, count, seed=SEED + words.seed)
        _print(title, fitted, _fresh_examples(known, fresh))
    print(f"\n{time.perf_counter() - start:.0f} s")


def _fixed(library: Library, name: str) -> Policy:
    """Return a condition as a policy that draws nothing else."""
    numbers = library.condition(name).model_dump(exclude={"origin"}, exclude_none=True)
    return Policy.model_validate(numbers)


def _calibration_examples(known: PerformancePredictor) -> Examples:
    """Return the calibration set's own examples, each predicted without its frame."""
    table, index = known.table, known._near
    views = [
        np.clip(view.kernels.fit(known._f1_nm).fitted_nq, 0, 1)[..., None] for view in known._views
    ]
    parts = np.concatenate([*views, table.score_nmf], axis=2).reshape(len(known._frame_n), -1)
    total_n = np.nan_to_num(parts[:, INDEX]) @ index.weight_i
    f1_n, frame_n = table.f1_nm.ravel(), known._frame_n
    predicted_n = np.empty(len(f1_n))
    for fold in range(FOLDS):
        out_n = frame_n % FOLDS == fold
        predicted_n[out_n] = np.interp(total_n[out_n], *_monotone(total_n[~out_n], f1_n[~out_n]))
    return Examples(total_n, predicted_n, f1_n, frame_n)


def _fresh_examples(known: PerformancePredictor, fresh: CalibrationSet) -> Examples:
    """Return examples of frames that nothing was fitted to."""
    alone = [{member: 1.0} for member in known.table.members]
    parts = np.concatenate(
        [
            np.column_stack([*known._by_views(_Row(summary_s, score_mf), alone), score_mf])
            for summary_s, score_mf in zip(fresh.summary_ns, fresh.score_nmf, strict=True)
        ]
    )[:, INDEX]
    f1_n, *ends = known._near.predict_f1(parts).T
    frame_n = np.repeat(np.arange(len(fresh)), len(alone))
    index_n = np.nan_to_num(parts) @ known._near.weight_i
    return Examples(index_n, f1_n, fresh.f1_nm.ravel(), frame_n, tuple(ends[:2]), tuple(ends[2:]))


def _ours(fitted: Examples, fresh: Examples) -> Interval:
    assert fresh.ours_n is not None
    return fresh.ours_n


def _ours_if_chosen(fitted: Examples, fresh: Examples) -> Interval:
    assert fresh.chosen_n is not None
    return fresh.chosen_n


def _crepes(fitted: Examples, fresh: Examples) -> Interval:
    """One width for all: absolute errors of the frames left out."""
    from crepes import ConformalRegressor

    made = ConformalRegressor().fit(fitted.f1_n - fitted.predicted_n)
    return _ends(made.predict_int(fresh.predicted_n, confidence=CONFIDENCE, y_min=0, y_max=1))


def _crepes_bins(fitted: Examples, fresh: Examples) -> Interval:
    """Absolute errors in as many bins of the predicted F1 as ours (Mondrian)."""
    from crepes import ConformalRegressor

    bins, fresh_bins = _bins(fitted, fresh)
    made = ConformalRegressor().fit(fitted.f1_n - fitted.predicted_n, bins=bins)
    rows = made.predict_int(
        fresh.predicted_n, bins=fresh_bins, confidence=CONFIDENCE, y_min=0, y_max=1
    )
    return _ends(rows)


def _crepes_system(fitted: Examples, fresh: Examples) -> Interval:
    """Errors with their sign in the same bins: a conformal predictive system."""
    from crepes import ConformalPredictiveSystem

    bins, fresh_bins = _bins(fitted, fresh)
    made = ConformalPredictiveSystem().fit(fitted.f1_n - fitted.predicted_n, bins=bins)
    rows = made.predict_int(
        fresh.predicted_n, bins=fresh_bins, confidence=CONFIDENCE, y_min=0, y_max=1
    )
    return _ends(rows)


def _mapie_cross(fitted: Examples, fresh: Examples) -> Interval:
    """Cross-conformal (CV+) around an isotonic regression, folds by frame."""
    from mapie.regression import CrossConformalRegressor
    from sklearn.isotonic import IsotonicRegression
    from sklearn.model_selection import GroupKFold

    made = CrossConformalRegressor(
        IsotonicRegression(out_of_bounds="clip"),
        confidence_level=CONFIDENCE,
        method="plus",
        cv=GroupKFold(FOLDS),
    )
    made.fit_conformalize(fitted.index_n[:, None], fitted.f1_n, groups=fitted.frame_n)
    return _ends(made.predict_interval(fresh.index_n[:, None])[1][..., 0])


def _mapie_quantiles(fitted: Examples, fresh: Examples) -> Interval:
    """Conformalised quantile regression: gradient-boosted quantiles of the index."""
    from mapie.regression import ConformalizedQuantileRegressor
    from sklearn.ensemble import GradientBoostingRegressor

    half_n = fitted.frame_n % 2 == 0
    model = GradientBoostingRegressor(
        loss="quantile", n_estimators=100, max_depth=2, min_samples_leaf=LEAST_BIN // 2
    )
    made = ConformalizedQuantileRegressor(model, confidence_level=CONFIDENCE)
    made.fit(fitted.index_n[half_n, None], fitted.f1_n[half_n])
    made.conformalize(fitted.index_n[~half_n, None], fitted.f1_n[~half_n])
    return _ends(made.predict_interval(fresh.index_n[:, None])[1][..., 0])


METHODS: dict[str, Callable[[Examples, Examples], Interval]] = {
    "ours: signed errors in bins, joined by lines": _ours,
    "ours, of a chosen member": _ours_if_chosen,
    "crepes: one width": _crepes,
    "crepes: absolute errors in bins": _crepes_bins,
    "crepes: predictive system in bins": _crepes_system,
    "mapie: cross-conformal (CV+)": _mapie_cross,
    "mapie: conformalised quantiles": _mapie_quantiles,
}


def _bins(fitted: Examples, fresh: Examples) -> tuple[Array, Array]:
    count = int(np.clip(len(fitted.predicted_n) // LEAST_BIN, 1, BINS))
    edges = np.unique(np.quantile(fitted.predicted_n, np.linspace(0, 1, count + 1)[1:-1]))
    return np.searchsorted(edges, fitted.predicted_n), np.searchsorted(edges, fresh.predicted_n)


def _ends(rows_n2: Array) -> Interval:
    return np.clip(rows_n2[:, 0], 0, 1), np.clip(rows_n2[:, 1], 0, 1)


def _print(title: str, fitted: Examples, fresh: Examples) -> None:
    """Print coverage, width and interval score of each method on fresh frames.

    The interval score (Gneiting and Raftery, JASA 102, 359 (2007)) is the width, plus 20 times what
    the truth lies outside: less is better.
    """
    print(f"\n{title}, {len(fresh.f1_n)} members on frames:\n")
    print(
        "| intervals | hold | of low, middle, high predicted F1 | mean width | interval score "
        "| of the chosen member of each frame: hold | mean width | interval score |"
    )
    print("|---|---|---|---|---|---|---|---|")
    best_n = _best_of_each(fresh)
    third_n = np.digitize(fresh.predicted_n, np.quantile(fresh.predicted_n, [1 / 3, 2 / 3]))
    for name, method in METHODS.items():
        low_n, high_n = method(fitted, fresh)
        holds_n = (low_n - 1e-9 <= fresh.f1_n) & (fresh.f1_n <= high_n + 1e-9)
        outside_n = np.maximum(low_n - fresh.f1_n, 0) + np.maximum(fresh.f1_n - high_n, 0)
        width_n = high_n - low_n
        worth_n = width_n + 2 / (1 - CONFIDENCE) * outside_n
        thirds = ", ".join(f"{holds_n[third_n == third].mean():.2f}" for third in range(3))
        rows = (holds_n, width_n, worth_n)
        whole, chosen = ([f"{row[some].mean():.3f}" for row in rows] for some in (..., best_n))
        print(f"| {' | '.join([name, whole[0], thirds, *whole[1:], *chosen])} |")


def _best_of_each(fresh: Examples) -> Array:
    """Return the example of each frame with the greatest predicted F1: the one that is selected."""
    frames = [np.flatnonzero(fresh.frame_n == frame) for frame in np.unique(fresh.frame_n)]
    return np.array([places[fresh.predicted_n[places].argmax()] for places in frames])


if __name__ == "__main__":
    main()
