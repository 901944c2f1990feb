"""Simulated frames beside recorded ones of the same kind: a picture and numbers.

    python tests/benchmarks/simulated_beside_real.py --data ../shared/data/frames --out beside

Each frame is standardised (mean 0, standard deviation 1), so gain and offset do not count. Each
distance is followed by the same one between random halves of the recorded frames: the least that
a perfect simulator would show. Axis letters: n frame, y row, x column.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from manybeam.data.io.reading import read_frames, read_truth_csv
from manybeam.data.simulation.simulate import simulate
from manybeam.spec import Library

Array = NDArray[np.floating]
LIBRARY = Library(Path(__file__).parents[2] / "zoo")
REACH_PX = 16  # of an atom's profile
SEARCH_PX = 3  # an atom is the brightest place so near its mark
MARK_PX = 1.4  # standard deviation of a hand's marks in y and in x, given to the simulated truth
SPLIT_COUNT = 20
RING_COUNT = 40
IMMERKAER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 6


@dataclass(frozen=True)
class Kind:
    """Recorded frames of one kind and the condition that is meant to be like them."""

    pattern: str
    condition: str
    pixel_size_pm: dict[str, float | None]
    note: str = ""


KINDS = {
    "ptnc": Kind("ptnc/*.tif", "ptnc-sim-nominal", {"": 29.3}),
    "mos2": Kind(
        "mos2/*.npy",
        "mos2-60kv-nominal",
        {"000-2": 9000 / 512, "001-5": 7000 / 512},
        "two frames of other pixel sizes: their halves differ by that",
    ),
    "rebpy": Kind("rebpy/*.png", "rebpy-sim", {"": None}, "pixel size unknown: compared in pixels"),
}


@dataclass(frozen=True)
class FrameAnalysis:
    """What is compared of one frame.

    Attributes:
        spectrum_f: power of the standardised frame in rings up to the Nyquist frequency, in dB.
        values: the standardised values, sorted and thinned.
        noise: standard deviation of Immerkaer's noise, in standard deviations of the frame.
        profile_r: mean atom above its surroundings at 0, 1, 2.. px, in standard deviations.
    """

    frame_yx: Array
    spectrum_f: Array
    values: Array
    noise: float
    profile_r: Array


def main() -> None:
    """Print the table and write one figure a kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[*KINDS])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    print(
        "| frames | spectrum, dB | halves | histogram | halves | noise | halves | atom, px | sim |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in words.kinds:
        kind = KINDS[name]
        real = _recorded(kind, words.data)
        made = _simulated(kind, real)
        looks = [_look(*one) for one in real], [_look(*one) for one in made]
        print(f"| {name} ({len(real)}) | {_row(*looks)} |" + (f" {kind.note}" if kind.note else ""))
        _draw(name, *looks, words.out)


Frame = tuple[Array, Array | None, float | None]


def _recorded(kind: Kind, data: Path) -> list[Frame]:
    """Return (frame, marked atoms, pixel size) of every file."""
    found = []
    for path in sorted(data.glob(kind.pattern)):
        marks = path.with_suffix(".csv")
        size = kind.pixel_size_pm.get(path.stem, kind.pixel_size_pm.get(""))
        truth = read_truth_csv(marks) if marks.exists() else None
        found.append((np.asarray(read_frames(path).frame, float), truth, size))
    return found


def _simulated(kind: Kind, real: Sequence[Frame]) -> list[Frame]:
    """Return as many simulated frames, of the recorded ones' shapes and pixel sizes."""
    made = []
    for seed, (frame, marks, size) in enumerate(real):
        condition = LIBRARY.condition(kind.condition)
        if size is not None:
            scan = condition.scan.model_copy(update={"pixel_size_pm": size})
            condition = condition.model_copy(update={"scan": scan})
        one = simulate(condition, 1, seed=seed, shape=(frame.shape[0], frame.shape[1]))
        truth = None if marks is None else _marked(one.truth[0], seed)
        made.append((one.frames_nyx[0].astype(float), truth, size))
    return made


def _marked(truth_n3: Array, seed: int) -> Array:
    """Return the true places as a hand would have marked them."""
    rng = np.random.default_rng(seed)
    return truth_n3[:, :2] + rng.normal(0, MARK_PX, (len(truth_n3), 2))


def _look(frame_yx: Array, truth: Array | None, _: float | None) -> FrameAnalysis:
    flat = (frame_yx - frame_yx.mean()) / frame_yx.std()
    noise = float(np.sqrt(np.pi / 2) * np.abs(ndimage.convolve(flat, IMMERKAER)).mean())
    places = _places(flat) if truth is None else truth[:, :2]
    return FrameAnalysis(
        flat, _spectrum(flat), np.sort(flat.ravel())[::64], noise, _profile(flat, places)
    )


def _spectrum(flat_yx: Array) -> Array:
    """Return the mean power of a windowed frame in each ring, in dB."""
    window = np.hanning(flat_yx.shape[0])[:, None] * np.hanning(flat_yx.shape[1])[None]
    power = np.abs(np.fft.fft2(flat_yx * window)) ** 2 / (window**2).sum()
    radius = np.hypot(
        *np.meshgrid(*(np.fft.fftfreq(side) for side in flat_yx.shape), indexing="ij")
    )
    ring = np.digitize(radius, np.linspace(0.004, 0.5, RING_COUNT + 1))
    inside = (ring > 0) & (ring <= RING_COUNT)
    total = np.bincount(ring[inside], power[inside], RING_COUNT + 1)[1:]
    return np.asarray(10 * np.log10(total / np.bincount(ring[inside], None, RING_COUNT + 1)[1:]))


def _places(flat_yx: Array) -> Array:
    """Return the brightest local maxima where nobody marked atoms, the same way on both sides."""
    smooth = ndimage.gaussian_filter(flat_yx, 2)
    maxima = (smooth == ndimage.maximum_filter(smooth, 9)) & (smooth > np.quantile(smooth, 0.9))
    return np.argwhere(maxima)


def _profile(flat_yx: Array, places_n2: Array) -> Array:
    """Return the mean atom by distance from its middle, above what surrounds it.

    Each atom is first moved to the brightest smoothed pixel near its mark.
    """
    smooth = ndimage.gaussian_filter(flat_yx, 1.5)
    patches = []
    for y, x in np.round(places_n2).astype(int):
        near = smooth[
            max(y - SEARCH_PX, 0) : y + SEARCH_PX + 1, max(x - SEARCH_PX, 0) : x + SEARCH_PX + 1
        ]
        if not near.size:
            continue
        dy, dx = np.unravel_index(near.argmax(), near.shape)
        top, left = max(y - SEARCH_PX, 0) + dy - REACH_PX, max(x - SEARCH_PX, 0) + dx - REACH_PX
        patch = flat_yx[
            max(top, 0) : top + 2 * REACH_PX + 1, max(left, 0) : left + 2 * REACH_PX + 1
        ]
        if patch.shape == (2 * REACH_PX + 1, 2 * REACH_PX + 1):
            patches.append(patch)
    if not patches:
        return np.zeros(REACH_PX)
    mean = np.mean(patches, axis=0)
    y, x = np.mgrid[-REACH_PX : REACH_PX + 1, -REACH_PX : REACH_PX + 1]
    radius = np.hypot(y, x).round().astype(int)
    profile = np.bincount(radius.ravel(), mean.ravel()) / np.bincount(radius.ravel())
    return np.asarray(profile[:REACH_PX] - profile[10:REACH_PX].min())


def _row(real: Sequence[FrameAnalysis], made: Sequence[FrameAnalysis]) -> str:
    """Return the distances real to simulated, each with that between halves of the real ones."""
    cells = [
        f"{distance(real, made):.2f} | {_between_halves(real, distance):.2f}"
        for distance in (_spectral, _histogram, _noise)
    ]
    return " | ".join([*cells, f"{_width(real):.1f} | {_width(made):.1f}"])


Distance = Callable[[Sequence[FrameAnalysis], Sequence[FrameAnalysis]], float]


def _between_halves(real: Sequence[FrameAnalysis], distance: Distance) -> float:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(SPLIT_COUNT):
        order = rng.permutation(len(real))
        halves = ([real[i] for i in half] for half in np.array_split(order, 2))
        apart = distance(*halves)
        found.append(max(apart, 1 / apart) if distance is _noise else apart)
    return float(np.median(found))


def _spectral(one: Sequence[FrameAnalysis], two: Sequence[FrameAnalysis]) -> float:
    """Return the root mean square difference of the mean log spectra, in dB."""
    mean = [np.mean([look.spectrum_f for look in looks], axis=0) for looks in (one, two)]
    return float(np.sqrt(((mean[0] - mean[1]) ** 2).mean()))


def _histogram(one: Sequence[FrameAnalysis], two: Sequence[FrameAnalysis]) -> float:
    """Return the Wasserstein distance of the pooled values, in standard deviations."""
    pooled = [np.concatenate([look.values for look in looks]) for looks in (one, two)]
    return float(stats.wasserstein_distance(*pooled))


def _noise(one: Sequence[FrameAnalysis], two: Sequence[FrameAnalysis]) -> float:
    """Return the ratio of the second's noise to the first's."""
    return float(np.mean([a.noise for a in two]) / np.mean([a.noise for a in one]))


def _width(looks: Sequence[FrameAnalysis]) -> float:
    """Return the full width at half maximum of the mean atom, in px."""
    profile = np.mean([look.profile_r for look in looks], axis=0)
    below = np.flatnonzero(profile < profile[0] / 2)
    if not below.size or not profile[0]:
        return float("nan")
    last = below[0]
    step = (profile[last - 1] - profile[0] / 2) / (profile[last - 1] - profile[last])
    return float(2 * (last - 1 + step))


def _draw(
    name: str, real: Sequence[FrameAnalysis], made: Sequence[FrameAnalysis], out: Path
) -> None:
    """Write one figure: frames of both, spectra, histograms, the mean atom."""
    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 3, figsize=(11, 11))
    for axis in axes[:2].ravel():
        axis.axis("off")
    for row, looks, label in zip(axes, (real, made), ("recorded", "simulated"), strict=False):
        for axis, look in zip(row, looks, strict=False):
            axis.imshow(look.frame_yx, cmap="gray", vmin=-2, vmax=3.5)
            axis.set_title(label)
    for looks, colour, label in ((real, "black", "recorded"), (made, "tab:orange", "simulated")):
        for look in looks:
            axes[2, 0].plot(look.spectrum_f, colour, alpha=0.25)
            axes[2, 1].hist(look.values, 80, density=True, histtype="step", color=colour, alpha=0.3)
        axes[2, 0].plot(
            np.mean([look.spectrum_f for look in looks], axis=0), color=colour, label=label
        )
        axes[2, 2].plot(
            np.mean([look.profile_r for look in looks], axis=0), color=colour, label=label
        )
    axes[2, 0].set_xscale("log")
    axes[2, 0].set_title("power of each ring, dB")
    axes[2, 1].set_xlim(-3, 5)
    axes[2, 1].set_title("standardised values")
    axes[2, 2].set_title("mean atom, px")
    axes[2, 2].legend()
    figure.tight_layout()
    figure.savefig(out / f"{name}.png", dpi=75)


if __name__ == "__main__":
    main()
