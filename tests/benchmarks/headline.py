"""The headline table: ensembles trained on simulated frames, and their rivals, on every condition.

    make bench-science                            # or, with the rival from its own environment:
    python tests/benchmarks/headline.py --out bench/science --atomai atomai/bin/python

Each repetition trains, by `manybeam train` and with other seeds, an ensemble and one generalist of
the same total budget for each family of conditions; all are measured on the same test frames,
which no training has seen. What is done already is not done again: stopped, start it again.

Rows: classical detector (tuned on other frames of the same condition), worst, mean and best member
(of each condition), the ensemble, the generalist, AtomAI on the same tiles (one repetition of two
members of 150 cycles, its default network: more would take longer than everything else).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "frames"
SEED_STEP = 1000  # between the seeds of two repetitions
REBPY_PM = 20.0  # stated nowhere; there its atoms are as wide as others (decision 0008)
RIVAL_MEMBERS = 2
RIVAL_PIXELS = 4_000 * 96 * 96  # of the tiles given to the rival: its trainer holds several copies
KEYS = ("f1", "precision", "recall", "rmse_pm", "ece", "aurc")
Array = np.ndarray[Any, Any]
Table = dict[str, dict[str, dict[str, list[float]]]]  # row, condition, score: one a repetition


@dataclass(frozen=True)
class Family:
    """Conditions that one recipe is trained for.

    Attributes:
        recipe: id of the recipe.
        general: policy of the generalist.
        conditions: globs of what is measured.
        real: labelled real frames, by folder.
        radius_pm: match radius on simulated frames; 0 for 0.35 of the neighbour distance.
        frame_count: test frames a condition.
        rival_cycles: steps of each of the rival's members.
    """

    recipe: str
    general: str
    conditions: tuple[str, ...]
    real: Mapping[str, "Real"]
    radius_pm: float
    frame_count: int
    rival_cycles: int


@dataclass(frozen=True)
class Real:
    """Labelled real frames: every second of some files, of which condition and pixel size.

    They are scored within five of their pixels, as far as their marks can be trusted.
    """

    pattern: str
    first: int
    condition: str
    pixel_size_pm: float

    @property
    def radius_pm(self) -> float:
        """Match radius."""
        return round(5 * self.pixel_size_pm, 1)


FAMILIES = {
    "graphene": Family(
        "graphene", "graphene-general", ("graphene-*",), {}, 0.0, frame_count=16, rival_cycles=150
    ),
    "heavy": Family(
        "heavy-atoms",
        "pt-general",
        ("ptnc-sim-*", "rebpy-sim"),
        {
            # Every second frame served to choose loss, masks and policies (decision 0011), ...
            "ptnc-chosen-on": Real("ptnc/*.tif", 0, "ptnc-hpai", 29.3),
            "rebpy-chosen-on": Real("rebpy/*.png", 0, "rebpy-measured", REBPY_PM),
            # ... the others for nothing.
            "ptnc-held-out": Real("ptnc/*.tif", 1, "ptnc-hpai", 29.3),
            "rebpy-held-out": Real("rebpy/*.png", 1, "rebpy-measured", REBPY_PM),
        },
        147.0,
        frame_count=8,
        rival_cycles=150,
    ),
}


def main() -> None:
    """Train what is not trained yet, measure it, write the tables."""
    parser = argparse.ArgumentParser(description="The headline table")
    parser.add_argument("--out", type=Path, default=Path("bench/science"))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--atomai", default=os.environ.get("ATOMAI_PYTHON", ""))
    words = parser.parse_args()
    out = words.out.resolve()
    (out / "jobs").mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "zoo", out / "zoo", dirs_exist_ok=True)
    os.environ.update(MANYBEAM_HOME=str(out / "home"), MANYBEAM_ZOO=str(out / "zoo"))
    start = time.monotonic()
    _manybeam("up")
    try:
        urls = {name: _imported(out, FAMILIES[name]) for name in words.families}
        # Two at a time, one core each: a generalist is one network and would leave one idle.
        with ThreadPoolExecutor(2) as pool:
            work = [
                pool.submit(_measure, out, name, kind, repetition, urls[name], words.atomai)
                for kinds in (("ensemble", "generalist"), ("atomai",))
                for repetition in range(words.repetitions)
                for name in words.families
                for kind in kinds
            ]
            for one in work:
                one.result()
    finally:
        _manybeam("down")
    text = _report(out, words.families, words.repetitions)
    (out / "table.md").write_text(text)
    print(text)
    print(f"this call took {(time.monotonic() - start) / 60:.1f} min")


def _measure(
    out: Path, name: str, kind: str, repetition: int, real: Mapping[str, float], atomai: str
) -> None:
    """Make one result, if it is not there yet."""
    ref = f"{name}-{kind}-{repetition}"
    result = out / f"{ref}.json"
    if result.exists() or (kind == "atomai" and not atomai):
        return
    if kind == "atomai":
        # One repetition: it takes as long as everything else.
        if repetition == 0:
            _write(result, _rival(out, name, repetition, real, atomai))
        return
    job = _write_job(out, FAMILIES[name], ref, kind, repetition)
    if not _is_registered(ref):
        _manybeam("train", str(job))
    rows = _scores(ref)
    for url, radius_pm in real.items():
        measured = _measured_on(ref, url, radius_pm)
        for row, values in measured.items():
            rows["rows"].setdefault(row, {})[Path(url).name] = values
    _write(result, rows)


def _imported(out: Path, family: Family) -> dict[str, float]:
    """Return the match radius of each FrameSet of real frames by its URL; import missing ones."""
    radii = {}
    for name, real in family.real.items():
        url = out / "real" / name
        radii[str(url)] = real.radius_pm
        if not url.exists():
            files = sorted(map(str, SHARED.glob(real.pattern)))[real.first :: 2]
            size = ("--pixel-size-pm", str(real.pixel_size_pm))
            where = ("--condition", real.condition, "--out", str(url))
            _manybeam("data", "import", *files, "--truth", "csv", *size, *where)
    return radii


def _write_job(out: Path, family: Family, ref: str, kind: str, repetition: int) -> Path:
    """Write the recipe and the job of one training of one repetition; return the job's path."""
    recipe = yaml.safe_load((ROOT / "zoo" / "recipes" / f"{family.recipe}.yaml").read_text())
    members, training = recipe["members"], recipe["training"]
    if kind == "generalist":
        recipe["members"] = [{"seed": 1, "policy": family.general}]
        recipe["training"] = {**training, "steps": training["steps"] * len(members)}
        policies = len({member["policy"] for member in members})
        recipe["tiles"]["frames_per_policy"] *= policies
    for member in recipe["members"]:
        member["seed"] += SEED_STEP * repetition
    recipe["id"] = ref
    (out / "zoo" / "recipes" / f"{ref}.yaml").write_text(yaml.safe_dump(recipe))
    measure = {
        "conditions": list(family.conditions),
        "frames_per_condition": family.frame_count,
        "match_radius_pm": family.radius_pm or None,
    }
    resources = {"workers": 1, "cpus_per_worker": 1}
    job = {"kind": "train", "name": ref, "recipe": ref, "seed": repetition, "measure": measure}
    path = out / "jobs" / f"{ref}.yaml"
    path.write_text(yaml.safe_dump({**job, "resources": resources}))
    return path


def _scores(ref: str) -> dict[str, Any]:
    """Return what the zoo has recorded: scores by row and condition, and what training took."""
    from manybeam.zoo.matrix import member_label
    from manybeam.zoo.registry import Zoo

    zoo = Zoo()
    matrix, members = zoo.matrix(ref), zoo.members(ref)
    rows = {
        member_label(row): {name: matrix.values(row, name) for name in matrix.conditions}
        for row in matrix.scored
    }
    policies = {member_label(member.index): member.policy for member in members}
    return {"rows": rows, "policies": policies, "train_s": sum(one.wall_s for one in members)}


def _measured_on(ref: str, url: str, radius_pm: float) -> dict[str, dict[str, float]]:
    """Return the scores on labelled real frames, with the classical detector tuned on them too."""
    from manybeam.data.frames import FrameSet
    from manybeam.jobs.evaluate import evaluate
    from manybeam.learn import classical
    from manybeam.learn.scores import score_frames
    from manybeam.spec import Library
    from manybeam.spec.job import Measure
    from manybeam.zoo.matrix import member_label
    from manybeam.zoo.registry import Zoo

    measure = Measure(frames=(url,), match_radius_pm=radius_pm)
    members = Zoo().members(ref)
    scores = evaluate(members, measure, Library(Path(os.environ["MANYBEAM_ZOO"])), executor="local")
    rows = {member_label(one.member): dict(one.values) for one in scores}
    frames = FrameSet.open(url)
    places = range(len(frames))
    whole, truth = [frames.frame(i) for i in places], [frames.truth(i) for i in places]
    sizes = [frames.pixel_size_pm(i) or 0.0 for i in places]
    blob, _ = classical.tune(whole, truth, sizes, radius_pm)
    found = [classical.detect(f, size, blob) for f, size in zip(whole, sizes, strict=True)]
    shapes = [frames.shape] * len(frames)
    rows["classical, tuned there"] = score_frames(found, truth, sizes, radius_pm, shapes).values()
    return rows


def _is_registered(ref: str) -> bool:
    from manybeam.errors import UnknownRef
    from manybeam.zoo.registry import Zoo

    try:
        Zoo().resolve(ref)
    except UnknownRef:
        return False
    return True


def _rival(
    out: Path, name: str, repetition: int, real: Mapping[str, float], python: str
) -> dict[str, Any]:
    """Train the rival on the tiles our members learned from, and score it on our test frames."""
    from manybeam.data.tiles import normalise, rescale
    from manybeam.jobs.train import plan_run
    from manybeam.settings import settings
    from manybeam.spec import Library, load_job

    library = Library(out / "zoo")
    job = load_job(out / "jobs" / f"{name}-ensemble-{repetition}.yaml")
    run = plan_run(job, library, settings().store_url, "local")
    spec, family = run.recipe.tiles, FAMILIES[name]
    frames, radii = _test_frames(job.measure, library, real)
    stacks, scale = {}, {}
    for condition, labelled in frames.items():
        seen = [rescale(one.frame_yx, one.pixel_size_pm, spec.pixel_size_pm) for one in labelled]
        local_px = spec.local_nm * 1000 / spec.pixel_size_pm
        stacks[condition] = np.stack([normalise(f, spec.normalise, local_px) for f, _ in seen])
        scale[condition] = seen[0][1]
    given, made = out / f"{name}-given.npz", out / f"{name}-atomai-{repetition}.npz"
    held_out = _held_out(run, repetition)
    stacks["held-out"] = np.stack([input_yx for input_yx, _ in held_out])
    tests = {f"test_{condition}": stack for condition, stack in stacks.items()}
    np.savez(given, **_tiles(run, repetition), **tests)
    script = str(Path(__file__).with_name("atomai_rival.py"))
    flags = ["--members", str(RIVAL_MEMBERS), "--cycles", str(family.rival_cycles)]
    command = [python, script, str(given), str(made), *flags, "--seed", str(repetition)]
    # Nothing of this environment may reach that one.
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    subprocess.run(command, check=True, env={**plain, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"})
    given.unlink()
    radius_px = spec.mask_radius_pm / spec.pixel_size_pm
    with np.load(made) as maps:
        least = _best_threshold(maps["prob_held-out"], held_out, spec)
        row = {
            one: _judged(maps[f"prob_{one}"], frames[one], scale[one], radius_px, radii[one], least)
            for one in frames
        }
        report = json.loads(str(maps["report"]))
    return {"rows": {"atomai": row}, "policies": {}, "train_s": report["trained_s"], **report}


def _test_frames(
    measure: Any, library: Any, real: Mapping[str, float]
) -> tuple[dict[str, list[Any]], dict[str, float | None]]:
    """Return the test frames of each condition, and the match radius there."""
    from manybeam.jobs.evaluate import labelled_frames, plan_blocks
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
    most = RIVAL_PIXELS // run.recipe.tiles.tile_px**2 // len(policies)
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
    from manybeam.data.simulate import simulate
    from manybeam.data.tiles import normalise, rescale, rescale_truth

    spec, pairs = run.recipe.tiles, []
    for policy in run.policies.values():
        made = simulate(policy, 8, seed=SEED_STEP + repetition)
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

    from manybeam.learn.atoms import find_atoms
    from manybeam.learn.centring import LOGITS
    from manybeam.learn.ensemble import NEIGHBOUR_SHARE
    from manybeam.learn.scores import f1_of, judge

    gap_px = NEIGHBOUR_SHARE * spec.mask_radius_pm / spec.pixel_size_pm
    counts_t3 = np.zeros((len(LOGITS), 3), np.int64)
    for map_yx, (_, truth) in zip(maps_nyx.astype(np.float32), held_out, strict=True):
        atoms = find_atoms(map_yx, float(expit(LOGITS[0])), gap_px)
        for place, least in enumerate(expit(LOGITS)):
            likely = atoms[atoms[:, 3] >= least]
            shape = (map_yx.shape[0], map_yx.shape[1])
            counts_t3[place] += judge(
                likely, truth, spec.pixel_size_pm, shape, spec.mask_radius_pm
            ).counts
    return float(expit(LOGITS[f1_of(counts_t3).argmax()]))


def _judged(
    prob_nyx: Array,
    labelled: Sequence[Any],
    scale: float,
    radius_px: float,
    radius_pm: float | None,
    least: float,
) -> dict[str, float]:
    """Return the scores of the rival's maps, its atoms found as ours are."""
    from manybeam.learn.atoms import find_atoms
    from manybeam.learn.ensemble import NEIGHBOUR_SHARE
    from manybeam.learn.scores import judge, summarise

    judged, found = [], []
    for prob_yx, frame in zip(prob_nyx, labelled, strict=True):
        atoms = find_atoms(prob_yx.astype(np.float32), least, max(NEIGHBOUR_SHARE * radius_px, 1.0))
        atoms[:, :2] = (atoms[:, :2] + 0.5) / scale - 0.5
        shape = frame.frame_yx.shape
        judged.append(judge(atoms, frame.truth, frame.pixel_size_pm, shape, radius_pm))
        found.append(atoms)
    return summarise(judged, found).values()


def _write(path: Path, content: object) -> None:
    """Write a result whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.replace(path)


def _manybeam(*words: str) -> None:
    print("manybeam", *words[:3], "..." if len(words) > 3 else "", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "manybeam", *words], check=True, stdout=sys.stderr)


def _report(out: Path, families: Sequence[str], repetitions: int) -> str:
    """Return every table as Markdown."""
    parts = []
    for name in families:
        table, policies, seconds = _gather(out, name, repetitions)
        parts += [f"## {name}", "F1, mean ± standard deviation over repetitions", _f1(table)]
        parts += ["Each policy's members, F1", _f1(policies)]
        parts += ["All scores, mean over conditions and repetitions", _others(table, seconds)]
    return "\n\n".join(parts) + "\n"


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
    if "classical, tuned there" in rows:
        yield "classical, tuned there", rows["classical, tuned there"]
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
    main()
