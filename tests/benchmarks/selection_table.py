"""The tables of `selection.py` as Markdown, from the results it has left."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SCORES = ("confidence", "entropy", "forward", "agreement", "consistency", "lattice")
LEARNT = ("resembled", "rehearsed")
ANSWERS = {"mean of all": "all", "weighted": "weighted", "best 3": "best 3", "selected": "selected"}
EXTREME = ("extreme", "16k")
ALIENS = ("noise", "photograph", "diffraction", "empty")
FITS = 0.6
APART = 0.05  # F1 between best and worst member from which it matters whom one asks
Array = np.ndarray[Any, Any]
Results = dict[str, list[dict[str, Any]]]  # condition -> its frames, of one repetition


def report(kept: Path, repetitions: Sequence[int]) -> str:
    """Return every table as Markdown."""
    runs = [_read(kept, repetition) for repetition in repetitions]
    parts = []
    for pool in ("ten", "eleven"):
        rows = [_rows(run, pool) for run in runs]
        kept_rows = [_with_rivals(one, kept, r) for one, r in zip(rows, repetitions, strict=True)]
        parts += [f"## Pool of {pool}", _f1(kept_rows), _regrets(kept_rows)]
        parts += [_forecasts([_promises(run, pool) for run in runs])]
        parts += [_calibrations([_calibration(run, pool) for run in runs])]
        parts += [_sought([_kinds(run, pool) for run in runs])]
    return "\n\n".join(parts) + "\n"


def f1(counts: Array) -> float:
    """Return micro F1 of (frames, 3) true positives, false positives, false negatives."""
    hits, false, missed = np.asarray(counts, float).reshape(-1, 3).sum(axis=0)
    return float(2 * hits / max(2 * hits + false + missed, 1))


def _read(kept: Path, repetition: int) -> Results:
    ending = f"-{repetition}.json"
    found = {}
    for path in sorted(kept.glob(f"*{ending}")):
        name = path.name.removesuffix(ending).removeprefix("graphene-")
        found[name] = json.loads(path.read_text())["frames"]
    return found


def _rows(run: Results, pool: str) -> dict[str, dict[str, float]]:
    """Return F1 of each way to choose, by condition."""
    table: dict[str, dict[str, float]] = {}
    fixed = _best_fixed(run, pool)
    for name in (name for name in run if name not in ALIENS):
        frames = [frame[pool] for frame in run[name]]
        counts_nm3 = np.array([[one["counts"] for one in frame["members"]] for frame in frames])
        by_member = [f1(counts_nm3[:, m]) for m in range(counts_nm3.shape[1])]
        here = {"random": float(np.mean(by_member)), "best fixed": by_member[fixed]}
        for score in SCORES:
            told = [f["entropy"] if score == "entropy" else f["scores"][score] for f in frames]
            here[score] = _chosen_f1(counts_nm3, told)
        for score in LEARNT:
            here[score] = _chosen_f1(counts_nm3, [frame[score] for frame in frames])
        promised = [[one[0] for one in frame["predicted"]] for frame in frames]
        here["selected, one member"] = _chosen_f1(counts_nm3, promised)
        for row, key in ANSWERS.items():
            here[row] = f1(np.array([_answer(frame, key)["counts"] for frame in frames]))
        here["mean, norms re-estimated"] = f1(
            np.array([frame["normed"]["counts"] for frame in run[name]])
        )
        here["oracle member"] = max(by_member)
        here["oracle of each frame"] = _chosen_f1(
            counts_nm3, [[f1(c) for c in n] for n in counts_nm3]
        )
        table[name] = here
    return table


def _best_fixed(run: Results, pool: str) -> int:
    """Return the member that the calibration set's own scores would have fixed: best on average.

    Measured on the test frames themselves, which flatters it.
    """
    every = [
        [[f1(np.array(one["counts"])) for one in frame[pool]["members"]] for frame in frames]
        for name, frames in run.items()
        if name not in ALIENS
    ]
    return int(np.mean(np.concatenate(every), axis=0).argmax())


def _answer(frame: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    answers: Mapping[str, Any] = frame["answers"]
    found: Mapping[str, Any] = answers.get(key, answers["best"])
    return found


def _chosen_f1(counts_nm3: Array, told: Sequence[Sequence[float]]) -> float:
    """Return F1 if on each frame the member answers of whom most is told."""
    chosen = np.nan_to_num(np.array(told, float), nan=-9).argmax(axis=1)
    return f1(counts_nm3[np.arange(len(chosen)), chosen])


def _with_rivals(
    table: dict[str, dict[str, float]], kept: Path, repetition: int
) -> dict[str, dict[str, float]]:
    """Add the generalist of equal budget and AtomAI, as the headline measured them."""
    for kind in ("generalist", "atomai"):
        path = kept.parent / f"graphene-{kind}-{repetition}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        row = "atomai" if kind == "atomai" else next(iter(result["policies"]))
        for name, here in table.items():
            here[kind] = result["rows"][row][f"graphene-{name}"]["f1"]
    return table


def _f1(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Return ways to choose x conditions, mean over repetitions."""
    names = list(runs[0])
    rows = list(runs[0][names[0]])
    lines = [f"| condition | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|"]
    for name in names:
        cells = [_cell([run[name][row] for run in runs if row in run[name]]) for row in rows]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    means = [
        _cell([float(np.mean([run[name][row] for name in names])) for run in runs]) for row in rows
    ]
    lines.append(f"| **mean** | {' | '.join(means)} |")
    return "F1, mean over repetitions ± standard deviation\n\n" + "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _regrets(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Return the regret of each way to choose, against the best member of each condition."""
    rows = [row for row in next(iter(runs[0].values())) if not row.startswith("oracle")]
    lines = ["| | mean | mean but extremes | worst but extremes | where |", "|---" * 5 + "|"]
    for row in rows:
        regret = {
            name: float(np.mean([r[name]["oracle member"] - r[name][row] for r in runs]))
            for name in runs[0]
            if row in runs[0][name]
        }
        if not regret:
            continue
        usual = {n: v for n, v in regret.items() if not n.endswith(EXTREME)}
        worst = max(usual, key=lambda name: usual[name])
        means = f"{np.mean(list(regret.values())):.4f} | {np.mean(list(usual.values())):.4f}"
        lines.append(f"| {row} | {means} | {usual[worst]:.4f} | {worst} |")
    return "Regret against the best member of each condition\n\n" + "\n".join(lines)


def _promises(run: Results, pool: str) -> dict[str, float]:
    """Return what predicted F1, intervals and verdicts were worth."""
    from scipy.stats import spearmanr

    from manybeam.learn.scoring.scores import auroc

    predicted, true, chosen, fits, promise, far = [], [], [], [], [], []
    for name, frames in run.items():
        for frame in (frame[pool] for frame in frames):
            promise.append(frame["best_promise"])
            far.append(max(frame["distance"] - 2.0, 0.0))
            if name in ALIENS:
                fits.append(False)
                continue
            member_f1 = [f1(np.array(one["counts"])) for one in frame["members"]]
            predicted += frame["predicted"]
            true += member_f1
            fits.append(max(member_f1) >= FITS)
            chosen.append((*frame["promised"][frame["answered"]],
                           f1(np.array(frame["answers"]["selected"]["counts"]))))  # fmt: skip
    told, fact, kept = np.array(predicted), np.array(true), np.array(chosen)
    is_alien = np.array([name in ALIENS for name, frames in run.items() for _ in frames])
    misfit = np.array([not one for one in fits])
    score = -np.array(promise) + np.array(far)
    count = len(_members(run, pool))
    apart = np.repeat(np.ptp(fact.reshape(-1, count), axis=1) > APART, count)
    return {
        "rank correlation": float(spearmanr(told[:, 0], fact)[0]),
        "rank correlation where members differ": float(spearmanr(told[apart, 0], fact[apart])[0]),
        "mean absolute error": float(np.abs(told[:, 0] - fact).mean()),
        "coverage of 90 %, members": float(((fact >= told[:, 1]) & (fact <= told[:, 2])).mean()),
        "coverage of 90 %, chosen": float(
            ((kept[:, 3] >= kept[:, 1]) & (kept[:, 3] <= kept[:, 2])).mean()
        ),
        "AUROC of none fits": auroc(score, misfit),
        "AUROC of none fits, graphene only": auroc(score[~is_alien], misfit[~is_alien]),
        "aliens called out of distribution": float(
            np.mean([f[pool]["verdict"] != "ok" for n in ALIENS for f in run.get(n, [])] or [0])
        ),
        "fitting frames called out of distribution": float(
            np.mean([
                f[pool]["verdict"] != "ok"
                for n, frames in run.items() if n not in ALIENS
                for f in frames
                if max(f1(np.array(one["counts"])) for one in f[pool]["members"]) >= FITS
            ])
        ),
        "select, s a frame": float(
            np.mean([f["look_s"] + f[pool]["select_s"] for frames in run.values() for f in frames])
        ),
    }  # fmt: skip


def _members(run: Results, pool: str) -> list[Any]:
    """Return the rows of the members on some frame."""
    found: list[Any] = next(iter(run.values()))[0][pool]["members"]
    return found


def _forecasts(runs: Sequence[Mapping[str, float]]) -> str:
    lines = ["| | |", "|---|---|"]
    lines += [f"| {name} | {_cell([run[name] for run in runs])} |" for name in runs[0]]
    return "Forecasts and verdicts\n\n" + "\n".join(lines)


def _calibration(run: Results, pool: str) -> dict[str, dict[str, float]]:
    """Return, by condition, calibration of the selected answer, its bound and its positions."""
    from manybeam.learn.scoring.scores import auroc, reliability

    table = {}
    for name in (name for name in run if name not in ALIENS):
        rows = [frame[pool]["calibration"] for frame in run[name]]
        fact = np.concatenate([np.array(row["is_true"], bool) for row in rows])
        raw, made, spread = (
            np.concatenate([np.array(row[key], float) for row in rows])
            for key in ("raw", "calibrated", "spread")
        )
        promised = [row["kept"] for row in rows if row["promised"]]
        shares = [false / max(all_, 1) for all_, false in promised]
        within = np.array([row["within"] for row in rows]).sum(axis=0)
        table[name] = {
            "ECE raw": reliability(raw, fact).ece,
            "ECE": reliability(made, fact).ece,
            "AUROC doubt": auroc(1 - raw, ~fact),
            "AUROC spread": auroc(spread, ~fact),
            "promised": len(promised) / len(rows),
            "false atoms": float(np.mean(shares)) if shares else float("nan"),
            "kept": sum(a for a, _ in promised) / max(sum(len(r["raw"]) for r in rows), 1),
            "positions within": float(within[0] / max(within[1], 1)),
        }
    return table


def _calibrations(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    keys = list(next(iter(runs[0].values())))
    lines = [f"| condition | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    for name in [*runs[0], "mean"]:
        cells = []
        for key in keys:
            values = [
                run[name][key]
                if name != "mean"
                else float(np.nanmean([c[key] for c in run.values()]))
                for run in runs
            ]
            cells.append(f"{np.nanmean(values):.3f}" if not np.isnan(values).all() else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return (
        "Calibration carried over to the selected answer: 0.05 false atoms asked for, nine in ten "
        "positions promised\n\n" + "\n".join(lines)
    )


def _kinds(run: Results, pool: str) -> dict[str, dict[str, float]]:
    """Return vacancies filled, dopants and edges found, over all conditions but extremes."""
    frames = [
        frame[pool]
        for name, all_ in run.items()
        if name not in ALIENS and not name.endswith(EXTREME)
        for frame in all_
    ]
    best = [int(np.argmax([f1(np.array(o["counts"])) for o in f["members"]])) for f in frames]
    answers = {
        "selected": [frame["answers"]["selected"] for frame in frames],
        "mean of all": [_answer(frame, "all") for frame in frames],
        "oracle of each frame": [f["members"][m] for f, m in zip(frames, best, strict=True)],
    }
    return {
        row: {
            kind: float(np.divide(*np.array([o[kind] for o in found]).sum(axis=0)))
            for kind in ("filled", "dopant", "edge")
        }
        for row, found in answers.items()
    }


def _sought(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    lines = ["| | vacancies filled | dopants found | edges found |", "|---" * 4 + "|"]
    for row in runs[0]:
        cells = [_cell([run[row][kind] for run in runs]) for kind in ("filled", "dopant", "edge")]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "What F1 does not show, all conditions but the extremes\n\n" + "\n".join(lines)
