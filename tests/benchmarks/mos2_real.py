"""Atoms of the two real MoS2 frames, which have no truth: how regular their lattice is.

    manybeam train jobs/mos2.yaml
    python tests/benchmarks/mos2_real.py --data ../shared/data/frames/mos2 --out mos2.png

One layer of MoS2 seen from above has three neighbours around each column, 182 pm away.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
from scipy.spatial import cKDTree

from manybeam.zoo.registry import Zoo

mpl.use("Agg")
FIELD_PM = {"000-2": 9000.0, "001-5": 7000.0}  # stated beside the frames
REACH_PM = 250.0  # of a neighbour
COLOURS = {1: "r", 2: "c", 3: "y"}  # Mo, S, V


def main() -> None:
    """Print one line a frame and draw the atoms found."""
    from matplotlib import pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("mos2.png"))
    words = parser.parse_args()
    ensemble = Zoo().ensemble("mos2")
    figure, axes = plt.subplots(1, len(FIELD_PM), figsize=(10 * len(FIELD_PM), 10))
    for ax, (name, field_pm) in zip(axes, FIELD_PM.items(), strict=True):
        frame_yx = np.load(words.data / f"{name}.npy").astype(np.float32)
        size_pm = field_pm / frame_yx.shape[1]
        atoms = ensemble.predict(frame_yx, size_pm).atoms
        inside = ((atoms[:, :2] > 20) & (atoms[:, :2] < frame_yx.shape[0] - 20)).all(axis=1)
        near_pm = cKDTree(atoms[:, :2]).query(atoms[inside, :2], 4)[0][:, 1:] * size_pm
        is_bond = near_pm < REACH_PM
        bonds = near_pm[is_bond]
        kinds = np.bincount(atoms[:, 2].astype(int), minlength=4)[1:]
        print(
            f"{name}: {len(atoms)} atoms (Mo, S, V: {kinds.tolist()}); three neighbours "
            f"{is_bond.all(axis=1).mean():.3f}; bond {bonds.mean():.0f} ± {bonds.std():.0f} pm"
        )
        ax.imshow(frame_yx, cmap="gray")
        for kind, colour in COLOURS.items():
            of_kind = atoms[atoms[:, 2] == kind]
            ax.plot(of_kind[:, 1], of_kind[:, 0], ".", color=colour, markersize=4)
        ax.axis("off")
    figure.savefig(words.out, dpi=60)


if __name__ == "__main__":
    main()
