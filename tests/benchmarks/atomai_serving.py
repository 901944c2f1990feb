"""AtomAI 0.8.1 answering frames, in an environment of its own: the rival of `ensemble_speed.py`.

`atomai_rival.py` says how the environment is made.

    atomai/bin/python tests/benchmarks/atomai_serving.py train TILES.npz MODEL --members 8
    atomai/bin/python tests/benchmarks/atomai_serving.py answer MODEL FRAMES.npz

The first trains an ensemble with its trainer, long enough to find atoms, and writes
`MODEL_ensemble_metadict.tar`. The second reads lines `maps NAME NUMBER` or `atoms NAME NUMBER` and
writes for each the milliseconds of that answer, and the atoms found. Its predictor is made once for
each size, because it keeps the shape of its first call.

- `maps` is `EnsemblePredictor.predict` of one frame: mean and variance.
- `atoms` is `EnsemblePredictor.ensemble_forward`, the mean and variance of its maps, and
  `ensemble_locate`: what its documentation shows for atoms.
"""

import argparse
import contextlib
import io
import sys
import time
import warnings
from typing import Any

import numpy as np

warnings.filterwarnings("ignore")  # before it is imported: it warns then, and at every array

import atomai  # noqa: E402 - after the filter
import torch  # noqa: E402 - after the filter
from atomai.models import load_ensemble  # noqa: E402 - after the filter
from atomai.predictors import EnsemblePredictor, ensemble_locate  # noqa: E402 - after the filter
from atomai.trainers import EnsembleTrainer  # noqa: E402 - after the filter

Array = np.ndarray[Any, Any]
CYCLES, BATCH = 60, 8


def train(tiles: str, model: str, members: int) -> None:
    """Train an ensemble of its default network and write it as its own file."""
    with np.load(tiles) as given:
        inputs, targets = given["tiles"].astype(np.float32), given["masks"].astype(np.float32)
    trainer = EnsembleTrainer("Unet", nb_classes=1)
    trainer.compile_ensemble_trainer(
        training_cycles=CYCLES,
        batch_size=BATCH,
        plot_training_history=False,
        print_loss=CYCLES,
        filename=model,
    )
    held = 2 * BATCH
    data = (inputs[held:], targets[held:], inputs[:held], targets[:held])
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train_ensemble_from_scratch(*data, n_models=members)


class Answers:
    """Its predictors of one ensemble, one for each size of frame."""

    def __init__(self, model: str) -> None:
        self.network, self.weights = load_ensemble(f"{model}_ensemble_metadict.tar")
        self.made: dict[tuple[int, ...], Any] = {}

    def predictor(self, frame_yx: Array) -> Any:
        """Return the predictor of this size."""
        if frame_yx.shape not in self.made:
            made = EnsemblePredictor(self.network, self.weights, nb_classes=1, verbose=0)
            made.everbose = made.verbose = False  # it leaves them unset when told to be quiet
            self.made[frame_yx.shape] = made
        return self.made[frame_yx.shape]

    def maps(self, frame_yx: Array) -> int:
        """Predict mean and variance."""
        self.predictor(frame_yx).predict(frame_yx[None], num_batches=1)
        return 0

    def atoms(self, frame_yx: Array) -> int:
        """Predict maps, mean, variance and atoms; return how many."""
        predictor = self.predictor(frame_yx)
        data = predictor.preprocess(frame_yx[None], norm=True)
        maps = predictor.ensemble_forward(data, (1, 1, *frame_yx.shape))
        maps.mean(axis=0), maps.var(axis=0)
        found, _ = ensemble_locate(maps.transpose(0, 1, 3, 4, 2))
        return len(found[0])


def answer(model: str, frames: str) -> None:
    """Answer the frames that the lines of the standard input name."""
    with np.load(frames) as given:
        stacks = {name: given[name] for name in given.files}
    answers = Answers(model)
    print("ready", atomai.__version__, torch.get_num_threads(), flush=True)
    for line in sys.stdin:
        what, name, number = line.split()
        frame_yx = stacks[name][int(number)]
        begun = time.perf_counter()
        count = getattr(answers, what)(frame_yx)
        print(1000 * (time.perf_counter() - begun), count, flush=True)


def main() -> None:
    """Train or answer, as told."""
    parser = argparse.ArgumentParser(description="AtomAI's predictor")
    parser.add_argument("what", choices=("train", "answer"))
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--members", type=int, default=8)
    words = parser.parse_args()
    if words.what == "train":
        train(words.first, words.second, words.members)
    else:
        answer(words.first, words.second)


if __name__ == "__main__":
    main()
