"""AtomAI 0.8.1 trained on our tiles, in an environment of its own: the rival of the headline table.

    python3.11 -m venv atomai
    atomai/bin/pip install torch==2.13.0 'numpy<2' atomai==0.8.1 six requests
    atomai/bin/pip install --no-deps torchvision==0.15.2
    MPLBACKEND=Agg atomai/bin/python tests/benchmarks/atomai_rival.py IN.npz OUT.npz \
        --members 6 --cycles 500 --seed 0

IN holds `tiles` (n, y, x) float32 and `masks` (n, y, x) uint8 to train on, and any number of
stacks `test_NAME` (n, y, x), at the pixel size of the tiles. OUT gets `prob_NAME` float16, the
mean over members of the probability of an atom, and `report`, what was measured, as JSON.

It is used as its README says (EnsembleTrainer, default Unet, cross-entropy, Adam at 1e-3, batches
of 32, weights averaged over the last 30 cycles), and kept away from what is broken in it:

- six and requests are needed by its requirements and named by none; torchvision must be
  one whose import asks nothing of the torch beside it (only its list of models is read).
- Members are always seeded 0, 1, 2 ...: here the repetition's seed is added to each.
- Frames are scaled over the whole stack, so that one bright frame darkens the others: here they
  go in one by one, and training tiles are scaled one by one too.
- Sides must be multiples of 8: here frames are reflected at their far edges and cut back.
- A predictor keeps the shape of its first call: here each frame gets a new predictor.
- Two classes (none and two kinds) raise: all atoms are one kind here.
- Augmentation is seeded by the cycle, so all members see the same, and its Gaussian noise by
  nothing at all: it is off, as in the README, unless `--augment` is given; its rotations and
  contrast then repeat from member to member.
- Its averaged weights keep the batch norm of the first of the 30 cycles; left as it is.
- Ensemble coordinates come back empty below 10 members: maps are returned, not coordinates.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
import warnings
from typing import Any

import numpy as np

warnings.filterwarnings("ignore")  # before it is imported: it warns then, and at every array

import atomai  # noqa: E402 - after the filter
import torch  # noqa: E402 - after the filter
from atomai.predictors import EnsemblePredictor  # noqa: E402 - after the filter
from atomai.trainers import EnsembleTrainer  # noqa: E402 - after the filter
from atomai.transforms import seg_augmentor  # noqa: E402 - after the filter

Array = np.ndarray[Any, Any]

BATCH = 32  # its default
AVERAGED = 30  # cycles whose weights it averages; it fails with fewer
MULTIPLE = 8  # of the sides, for its Unet
HELD_BACK = 0.15  # share of the tiles its loop measures a test loss on, as in its own split
SEED_STEP = 1000  # between repetitions


class Repeated(EnsembleTrainer):
    """Its trainer, with the seed of the repetition added to those it gives its members."""

    offset = 0

    def _reset_rng(self, seed: int) -> None:
        super()._reset_rng(seed + self.offset)


def main() -> None:
    """Train, predict, write the maps and tell how long each took."""
    parser = argparse.ArgumentParser(description="AtomAI's ensemble on our tiles")
    parser.add_argument("given", metavar="IN.npz")
    parser.add_argument("made", metavar="OUT.npz")
    parser.add_argument("--members", type=int, default=6)
    parser.add_argument("--cycles", type=int, default=500, help="optimiser steps of each member")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--augment", action="store_true", help="rotation, contrast, noise")
    words = parser.parse_args()
    with np.load(words.given) as given:
        arrays = {name: given[name] for name in given.files}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        trainer, cycles = train(arrays["tiles"], arrays["masks"], words, folder)
        trained_s = time.perf_counter() - start
    maps, predicted_s = predict_all(trainer, arrays)
    report = {
        "atomai": atomai.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(weight.numel() for weight in trainer.net.parameters()),
        "members": words.members,
        "cycles": cycles,
        "batch": words.batch,
        "seed": words.seed,
        "augment": words.augment,
        "trained_s": round(trained_s, 3),
        "predicted_s": {name: round(value, 3) for name, value in predicted_s.items()},
        "member_images_per_s": round(words.members * cycles * words.batch / trained_s, 2),
    }
    np.savez_compressed(words.made, report=np.array(json.dumps(report)), **maps)
    print(json.dumps(report, indent=1))


def train(tiles: Array, masks: Array, words: Any, folder: str) -> tuple[Repeated, int]:
    """Return its trainer with an ensemble trained, and the cycles of each member."""
    order = np.random.default_rng(words.seed).permutation(len(tiles))
    inputs = np.stack([scaled(tile) for tile in tiles[order]]).astype(np.float32)
    targets = (masks[order] > 0).astype(np.float32)
    held = max(words.batch, round(HELD_BACK * len(inputs)))
    if len(inputs) - held < words.batch:
        raise SystemExit(f"{len(inputs)} tiles; at least {2 * words.batch}: two batches")
    trainer = Repeated("Unet", nb_classes=1)
    trainer.offset = SEED_STEP * words.seed
    trainer.compile_ensemble_trainer(
        training_cycles=words.cycles,
        batch_size=words.batch,
        swa=words.cycles >= AVERAGED,
        plot_training_history=False,
        print_loss=words.cycles,
        filename=f"{folder}/model",
    )
    change = {"rotation": True, "contrast": True, "gauss_noise": True} if words.augment else {}
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train_ensemble_from_scratch(
            inputs[held:],
            targets[held:],
            inputs[:held],
            targets[:held],
            n_models=words.members,
            augment_fn=seg_augmentor(1, **change),
        )
    return trainer, words.cycles


def predict_all(trainer: Repeated, arrays: dict[str, Array]) -> tuple[dict[str, Array], Any]:
    """Return the mean map of every frame of each test stack, and the seconds of each stack."""
    maps, seconds = {}, {}
    for name in [name.removeprefix("test_") for name in arrays if name.startswith("test_")]:
        start = time.perf_counter()
        frames_nyx = arrays[f"test_{name}"]
        found = [predict(trainer, frame).astype(np.float16) for frame in frames_nyx]
        maps[f"prob_{name}"] = np.stack(found) if found else np.zeros(frames_nyx.shape, np.float16)
        seconds[name] = time.perf_counter() - start
    return maps, seconds


def predict(trainer: Repeated, frame_yx: Array) -> Array:
    """Return the mean probability map of one frame of any size."""
    rows, columns = frame_yx.shape
    padded = np.pad(frame_yx, ((0, -rows % MULTIPLE), (0, -columns % MULTIPLE)), mode="reflect")
    predictor = EnsemblePredictor(trainer.net, trainer.ensemble_state_dict, nb_classes=1, verbose=0)
    predictor.everbose = predictor.verbose = False  # it leaves them unset when told to be quiet
    mean_nyxc, _ = predictor.predict(scaled(padded)[None], num_batches=1)
    return np.asarray(mean_nyxc[0, :rows, :columns, 0])


def scaled(frame_yx: Array) -> Array:
    """Return the frame between 0 and 1, as its predictor makes every stack."""
    low, span = frame_yx.min(), np.ptp(frame_yx)
    return np.asarray((frame_yx - low) / (span if span > 0 else 1), np.float32)


if __name__ == "__main__":
    main()
