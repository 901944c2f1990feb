"""The headline table: ensembles trained on simulated frames, and their rivals, on every condition.

    make bench-science                            # or, with the rival from its own environment:
    python tests/benchmarks/headline.py --out bench/science --atomai atomai/bin/python

Each repetition trains, by `manybeam train` and with other seeds, an ensemble and one generalist of
the same total budget for each family of conditions; all are measured on the same test frames,
which no training has seen. What is done already is not done again: stopped, start it again.

Rows: classical detector (tuned on other frames of the same condition), worst, mean and best member
(of each condition), the ensemble, the generalist, AtomAI on the same tiles (two members of its
default network, cycles enough for the core seconds that our ensemble takes). On real frames the
classical detector is also tuned on those very frames, and on simulated ones alone, which is all
that the members know.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "frames"
SEED_STEP = 1000  # between the seeds of two repetitions
TUNING_FRAMES, TUNING_SEED = 48, 90_001  # simulated ones, for the classical detector
REBPY_PM = 20.0  # stated nowhere; there its atoms are as wide as others (decision 0008)


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
        "graphene", "graphene-general", ("graphene-*",), {}, 0.0, frame_count=16, rival_cycles=70
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
        rival_cycles=45,
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
    from headline_table import report

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
    text = report(out, words.families, words.repetitions)
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
        from headline_rival import scores

        _write(result, scores(out, name, FAMILIES[name].rival_cycles, repetition, real, atomai))
        return
    job = _write_job(out, FAMILIES[name], ref, kind, repetition)
    if not _is_registered(ref):
        _manybeam("train", str(job))
    rows = _scores(ref)
    for url, radius_pm in real.items():
        measured = _measured_on(ref, url, radius_pm)
        measured |= _classical_on(FAMILIES[name], url, radius_pm)
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
    """Return the scores of an ensemble and its members on labelled real frames."""
    from manybeam.jobs.evaluate import evaluate
    from manybeam.spec import Library
    from manybeam.spec.job import Measure
    from manybeam.zoo.matrix import member_label
    from manybeam.zoo.registry import Zoo

    measure = Measure(frames=(url,), match_radius_pm=radius_pm)
    members = Zoo().members(ref)
    scores = evaluate(members, measure, Library(Path(os.environ["MANYBEAM_ZOO"])), executor="local")
    return {member_label(one.member): dict(one.values) for one in scores}


def _classical_on(family: Family, url: str, radius_pm: float) -> dict[str, dict[str, float]]:
    """Return the scores of the classical detector, tuned there and tuned on simulated frames."""
    from manybeam.data.frames import FrameSet
    from manybeam.learn.scoring import classical
    from manybeam.learn.scoring.scores import score_frames

    frames = FrameSet.open(url)
    places = range(len(frames))
    whole, truth = [frames.frame(i) for i in places], [frames.truth(i) for i in places]
    sizes = [frames.pixel_size_pm(i) or 0.0 for i in places]
    shapes = [frames.shape] * len(frames)
    blobs = {
        "classical, tuned there": classical.tune(whole, truth, sizes, radius_pm)[0],
        "classical, tuned on simulations": _tuned_on_simulations(family.general, family.radius_pm),
    }
    rows = {}
    for name, blob in blobs.items():
        found = [classical.detect(f, size, blob) for f, size in zip(whole, sizes, strict=True)]
        rows[name] = score_frames(found, truth, sizes, radius_pm, shapes).values()
    return rows


@cache
def _tuned_on_simulations(policy: str, radius_pm: float) -> Any:
    """Return the classical detector that is best on simulated frames of the broad policy."""
    from manybeam.data.simulation.simulate import simulate
    from manybeam.learn.scoring import classical
    from manybeam.spec import Library

    made = simulate(Library(ROOT / "zoo").policy(policy), TUNING_FRAMES, seed=TUNING_SEED)
    sizes = made.pixel_size_pm.tolist()
    return classical.tune(list(made.frames_nyx), made.truth, sizes, radius_pm)[0]


def _is_registered(ref: str) -> bool:
    from manybeam.errors import UnknownRef
    from manybeam.zoo.registry import Zoo

    try:
        Zoo().resolve(ref)
    except UnknownRef:
        return False
    return True


def _write(path: Path, content: object) -> None:
    """Write a result whole or not at all."""
    from manybeam.data.disk import write_files

    write_files({path: json.dumps(content).encode()})


def _manybeam(*words: str) -> None:
    print("manybeam", *words[:3], "..." if len(words) > 3 else "", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "manybeam", *words], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
