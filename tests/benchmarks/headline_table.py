"""The tables of `headline.py` as Markdown, from the results it has left.

python tests/benchmarks/headline_table.py bench/science
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

KEYS = ("f1", "precision", "recall", "rmse_pm", "ece", "aurc")
Table = dict[str, dict[str, dict[str, list[float]]]]  # row, condition, score: one a repetition


def report(out: Path, families: Sequence[str], repetitions: int) -> str:
    """Return every table as Markdown."""
    parts = []
    for name in families:
        table, policies, seconds = _gather(out, name, repetitions)
        parts += [f"## {name}", "F1, mean ± standard deviation over repetitions", _f1(table)]
        parts += ["Each policy's members, F1", _f1(policies)]
        for where, names in _kinds(table):
            parts += [f"All scores, mean over {where} and repetitions"]
            parts += [_others(_only(table, names), seconds)]
    return "\n\n".join(parts) + "\n"


def _kinds(table: Table) -> list[tuple[str, list[str]]]:
    """Return simulated and real frames apart: they are matched within other radii."""
    names = list(next(iter(table.values()), {}))
    real = [name for name in names if name.endswith(("-held-out", "-chosen-on"))]
    simulated = [name for name in names if name not in real]
    kinds = [("simulated conditions", simulated), ("real frames held out", real)]
    kinds[1] = (kinds[1][0], [name for name in real if name.endswith("-held-out")])
    return [(where, kept) for where, kept in kinds if kept]


def _only(table: Table, names: Sequence[str]) -> Table:
    cut = {row: {n: c for n, c in cells.items() if n in names} for row, cells in table.items()}
    return {row: cells for row, cells in cut.items() if cells}


def _gather(out: Path, name: str, repetitions: int) -> tuple[Table, Table, dict[str, float]]:
    """Return the rows of the table, those of each policy, and core seconds of training."""
    table, by_policy, seconds = {}, {}, {}  # type: tuple[Table, Table, dict[str, list[float]]]
    for repetition in range(repetitions):
        for kind in ("ensemble", "generalist", "atomai"):
            path = out / f"{name}-{kind}-{repetition}.json"
            if not path.exists():
                continue
            result = json.loads(path.read_text())
            seconds.setdefault(kind, []).append(result["train_s"])
            for row, scores in _rows(kind, result):
                _add(table, row, scores)
            for label, policy in result["policies"].items() if kind == "ensemble" else ():
                _add(by_policy, policy, result["rows"][label])
    return table, by_policy, {kind: float(np.mean(all_)) for kind, all_ in seconds.items()}


def _rows(kind: str, result: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the table's rows from one result."""
    rows = result["rows"]
    if kind != "ensemble":
        label = "atomai" if kind == "atomai" else next(iter(result["policies"]))
        yield kind, rows[label]
        return
    members = [rows[label] for label in result["policies"]]
    yield "classical", rows["classical"]
    for name in ("classical, tuned there", "classical, tuned on simulations"):
        if name in rows:
            yield name, rows[name]
    yield "worst member", _by_f1(members, 0)
    yield "mean member", _mean(members)
    yield "best member", _by_f1(members, -1)
    yield "ensemble", rows["ensemble"]


def _by_f1(members: Sequence[Mapping[str, Any]], place: int) -> dict[str, Any]:
    """Return for each condition the scores of the member at that place by F1."""
    return {
        name: sorted((member[name] for member in members), key=lambda s: s.get("f1", 0.0))[place]
        for name in members[0]
    }


def _mean(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: {
            key: float(np.nanmean([member[name].get(key, np.nan) for member in members]))
            for key in KEYS
            if any(key in member[name] for member in members)
        }
        for name in members[0]
    }


def _add(table: Table, row: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    for name, values in scores.items():
        for key in KEYS:
            cell = table.setdefault(row, {}).setdefault(name, {}).setdefault(key, [])
            cell.append(values.get(key, float("nan")))


def _f1(table: Table) -> str:
    """Return conditions x rows, mean and spread over repetitions, the best of each in bold."""
    rows = list(table)
    lines = [f"| condition | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|"]
    for name in next(iter(table.values()), {}):
        cells = [table[row].get(name, {}).get("f1", [float("nan")]) for row in rows]
        means = [float(np.mean(cell)) for cell in cells]
        best = max((mean for mean in means if mean == mean), default=0.0)
        text = [
            f"{'**' if mean == best else ''}{mean:.3f}{'**' if mean == best else ''}"
            + (f" ± {np.std(cell, ddof=1):.3f}" if len(cell) > 1 else "")
            for mean, cell in zip(means, cells, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(text)} |")
    return "\n".join(lines)


def _others(table: Table, seconds: Mapping[str, float]) -> str:
    """Return rows x scores, averaged over conditions, and what training took."""
    lines = [f"| | {' | '.join(KEYS)} | training, core s |", "|---" * (len(KEYS) + 2) + "|"]
    for row, scores in table.items():
        means = [
            np.nanmean([value for cell in scores.values() for value in cell[key]] or [np.nan])
            if any(value == value for cell in scores.values() for value in cell[key])
            else float("nan")
            for key in KEYS
        ]
        took = seconds.get(row)
        text = [*(f"{mean:.3f}" for mean in means), f"{took:.0f}" if took else ""]
        lines.append(f"| {row} | {' | '.join(text)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(Path(sys.argv[1]), ("graphene", "heavy"), 3))
