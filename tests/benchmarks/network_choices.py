"""Which network, loss and schedule: one change at a time, measured on conditions held out.

    python tests/benchmarks/network_choices.py --out bench/choices.json

Every variant trains on the same frames of the broad graphene policy and is scored on conditions
that policy does not centre on. The frames and seeds are not those of the headline table. Done
variants are kept in --out: stopped, start it again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manybeam.data.frames import FrameSet
from manybeam.data.simulation.simulate import simulate, simulate_into
from manybeam.data.tiles import Tiles, stage_tiles
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.networks import build, count_parameters
from manybeam.learn.scoring.scores import score_frames
from manybeam.learn.training.member import train_member
from manybeam.spec import Library, Recipe
from manybeam.spec.recipe import MemberPlan

ROOT = Path(__file__).parents[2]
HELD_OUT = ("mix-a", "mix-b", "mix-c", "dirty", "scan", "source", "16k", "extreme")
FRAMES, TEST_FRAMES = 480, 6
DATA_SEED, TEST_SEED = 9001, 9002
BASE: dict[str, Any] = {
    "network": {"name": "unet", "filters": 8, "levels": 4},
    "training": {"loss": "bce+dice", "learning_rate": 3e-3, "steps": 600, "batch": 16},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "as in the recipes": {},
    "loss bce": {"training": {"loss": "bce"}},
    "loss focal": {"training": {"loss": "focal"}},
    "loss dice": {"training": {"loss": "dice"}},
    "atoms weigh 3 times": {"weight": {"atom": 3.0}},
    "atoms weigh a third": {"weight": {"atom": 1 / 3}},
    "peak rate 1e-3": {"training": {"learning_rate": 1e-3}},
    "peak rate 1e-2": {"training": {"learning_rate": 1e-2}},
    "half the steps, twice the batch": {"training": {"steps": 300, "batch": 32}},
    "4 filters": {"network": {"filters": 4}},
    "16 filters": {"network": {"filters": 16}},
    "32 filters, fewer steps": {"network": {"filters": 32}, "training": {"steps": 150}},
    "3 levels": {"network": {"levels": 3}},
    "5 levels": {"network": {"levels": 5}},
    "MONAI UNet": {"network": {"name": "UNet"}},
    "MONAI AttentionUnet": {"network": {"name": "AttentionUnet"}},
    "MONAI SegResNet": {"network": {"name": "SegResNet"}},
}


def main() -> None:
    """Measure the variants that are not measured yet, and print the table."""
    parser = argparse.ArgumentParser(description="Network, loss and schedule by measurement")
    parser.add_argument("--out", type=Path, default=Path("bench/choices.json"))
    parser.add_argument("--seeds", type=int, default=2)
    words = parser.parse_args()
    torch.set_num_threads(1)
    words.out.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(words.out.read_text()) if words.out.exists() else {}
    tiles = _tiles(words.out.parent / "choices")
    tests = _tests()
    for seed in range(words.seeds):
        for name, change in VARIANTS.items():
            key = f"{name} / {seed}"
            if key not in done:
                done[key] = _measure(change, 9100 + seed, tiles, tests)
                words.out.write_text(json.dumps(done, indent=1))
    print(_table(done, words.seeds))


def _tiles(folder: Path) -> Tiles:
    policy = Library(ROOT / "zoo").policy("graphene-general")
    url = str(folder / "frames")
    frames = (
        FrameSet.open(url)
        if Path(url).exists()
        else simulate_into(url, policy, FRAMES, seed=DATA_SEED)
    )
    return stage_tiles([frames], _recipe({}).tiles, folder, seed=DATA_SEED)


def _tests() -> dict[str, Any]:
    library = Library(ROOT / "zoo")
    return {
        name: simulate(library.condition(f"graphene-60kv-{name}"), TEST_FRAMES, seed=TEST_SEED)
        for name in HELD_OUT
    }


def _recipe(change: dict[str, dict[str, Any]]) -> Recipe:
    content = {part: {**BASE[part], **change.get(part, {})} for part in BASE}
    tiles = {"tile_px": 96, "pixel_size_pm": 16.0, "mask_radius_pm": 42.0}
    return Recipe.model_validate(
        {**content, "id": "choice", "tiles": tiles, "members": [{"seed": 0, "policy": "any"}]}
    )


def _measure(
    change: dict[str, dict[str, Any]], seed: int, tiles: Tiles, tests: dict[str, Any]
) -> dict[str, Any]:
    recipe = _recipe(change)
    weight = change.get("weight", {}).get("atom")
    weight_nyx = None
    if weight:
        weight_nyx = np.where(tiles.target_nyx > 0, weight, 1.0).astype(np.float32)
    start = time.perf_counter()
    plan = MemberPlan(seed=seed, policy="any")
    member = train_member(recipe, plan, 0, tiles, weight_nyx=weight_nyx)
    trained_s = time.perf_counter() - start
    ensemble = Ensemble([member])
    f1 = {}
    for name, made in tests.items():
        sizes = [float(size) for size in made.pixel_size_pm]
        found = [
            ensemble.predict(frame, size).atoms
            for frame, size in zip(made.frames_nyx, sizes, strict=True)
        ]
        shapes = [frame.shape for frame in made.frames_nyx]
        f1[name] = score_frames(found, made.truth, sizes, None, shapes).f1
    parameters = count_parameters(build(recipe.network))
    return {"f1": f1, "train_s": trained_s, "parameters": parameters}


def _table(done: dict[str, Any], seeds: int) -> str:
    lines = [f"| variant | parameters | s | mean F1 | {' | '.join(HELD_OUT)} |"]
    lines.append("|---" * (len(HELD_OUT) + 4) + "|")
    for name in VARIANTS:
        runs = [done[f"{name} / {seed}"] for seed in range(seeds)]
        each = np.array([[run["f1"][one] for one in HELD_OUT] for run in runs])
        means, spread = each.mean(axis=0), each.mean(axis=1)
        seconds = np.mean([run["train_s"] for run in runs])
        cells = " | ".join(f"{mean:.3f}" for mean in means)
        total = f"{spread.mean():.3f} ± {np.ptp(spread) / 2:.3f}"
        lines.append(f"| {name} | {runs[0]['parameters']:,} | {seconds:.0f} | {total} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
