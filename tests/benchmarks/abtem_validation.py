"""Our simulator beside multislice with frozen phonons, on the same atoms under the same optics.

    pip install -e '.[validate]'
    python tests/benchmarks/abtem_validation.py --out validation graphene-60kv graphene-80kv

The atoms are those of a simulated frame's truth, so both sides see the same places. abTEM counts
defocus from the plane where the beam enters the potential; ours counts from the atoms: each focus
given to abTEM therefore has the atoms' depth added. Reference images stay in the output folder
and are used again; delete them to compute them anew.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from manybeam.data.simulation.optics import FWHM_PER_SIGMA, THERMAL_PM, foci
from manybeam.data.simulation.simulate import simulate
from manybeam.spec import Condition

Array = NDArray[np.floating]
# So wide that the foci which stand for the spread lie 3 nm apart: neighbours share them.
FOCAL_SPREAD_NM, SOURCE_PM = 3 / math.sqrt(3) * FWHM_PER_SIGMA, 60.0
PIXEL_PM, SIDE_PX, STRIDE = 15.0, 180, 2  # the reference is computed at every second pixel
FIRST_PX, COUNT = 56, 34  # 1 nm in the middle; the rim feeds the source's blur and is cut
RIM, FAR_PM = 3, 260.0
DEPTH_A = 0.5  # of the atoms below the plane where the beam enters
DOSE = 1e10
SUPPORT_NM, CARBON_PER_NM3 = 3.0, 100.0


@dataclass(frozen=True)
class Case:
    """Graphene under one beam; the rings end where the reference's grid still holds the wave."""

    beam_kv: float
    convergence_mrad: float
    outer_mrad: float
    defoci_nm: tuple[float, ...]
    phonon_count: int

    @property
    def rings(self) -> dict[str, tuple[float, float]]:
        """Inner and outer angle of each detector, in mrad."""
        return {"MAADF": (40.0, self.outer_mrad), "HAADF": (70.0, self.outer_mrad)}


CASES = {
    "graphene-60kv": Case(60.0, 30.0, 200.0, (-3.0, 0.0, 3.0, 6.0), 6),
    "graphene-80kv": Case(80.0, 25.0, 170.0, (0.0, 6.0), 3),
}


Pair = tuple[Array, Array]  # ours and the reference: share of the beam at the same places


def main() -> None:
    """Print the tables and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=[*CASES, "platinum", "thick"])
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    for case in words.cases:
        if case == "thick":
            _print_thick()
        elif case == "platinum":
            _print_platinum()
        else:
            _print_graphene(case, words.out)


def _abtem() -> ModuleType:
    import abtem
    import dask

    abtem.config.set({"diagnostics.progress_bar": False})
    dask.config.set(scheduler="single-threaded")
    return abtem


def _condition(name: str, ring: str, defocus_nm: float) -> Condition:
    case = CASES[name]
    none = ("vacancy_fraction", "nitrogen_fraction", "hole_probability", "strain")
    optics = {
        "beam_kv": case.beam_kv,
        "convergence_mrad": case.convergence_mrad,
        "defocus_nm": defocus_nm,
        "focal_spread_nm": FOCAL_SPREAD_NM,
        "source_fwhm_pm": SOURCE_PM,
    }
    inner, outer = case.rings[ring]
    return Condition.model_validate(
        {
            "id": name,
            "sample": {"structure": "graphene", "silicon_fraction": 0.01, **dict.fromkeys(none, 0)},
            "optics": optics,
            "detector": {
                "detector_inner_mrad": inner,
                "detector_outer_mrad": outer,
                "readout_e": 0,
            },
            "scan": {"pixel_size_pm": PIXEL_PM, "row_jitter_pm": 0, "shape": (SIDE_PX, SIDE_PX)},
            "state": {"background": 0, "contamination": 0},
            "dose_e_per_a2": DOSE,
        }
    )


def _ours(condition: Condition, seed: int) -> tuple[Array, Array]:
    """Return (share of the beam, truth) of one frame, noise below a thousandth."""
    made = simulate(condition, 1, seed=seed)
    return made.frames_nyx[0] / (DOSE * (PIXEL_PM / 100) ** 2), made.truth[0]


def _seed_with_one_silicon(name: str) -> int:
    """Return the first seed whose frame has one Si atom, and that in the middle."""
    for seed in itertools.count():
        _, truth = _ours(_condition(name, "HAADF", 0.0), seed)
        silicon = truth[truth[:, 2] == 14]
        if len(silicon) == 1 and (np.abs(silicon[0, :2] - SIDE_PX / 2) < 12).all():
            return seed
    raise AssertionError("unreachable")


def _print_graphene(name: str, out: Path) -> None:
    case, seed = CASES[name], _seed_with_one_silicon(name)
    truth = _ours(_condition(name, "HAADF", 0.0), seed)[1]
    stored = out / f"{name}.npz"
    if not stored.exists():
        started = time.perf_counter()
        images = _reference_images(name, truth)
        np.savez(stored, seconds=time.perf_counter() - started, **images)
    images = dict(np.load(stored))
    pairs = {
        (ring, defocus): (
            _cut(_ours(_condition(name, ring, defocus), seed)[0]),
            images[f"{ring}{defocus:g}"],
        )
        for ring in case.rings
        for defocus in case.defoci_nm
    }
    print(f"\n{name}: {case.convergence_mrad:g} mrad, rings to {case.outer_mrad:g} mrad")
    print("| detector | nm | r | r of C | contrast of C | abTEM | ratio | Si | abTEM | level |")
    print("|" + "---|" * 10)
    for (ring, defocus), pair in pairs.items():
        print(f"| {ring} | {defocus:g} | {_row(pair, _far_from_silicon(truth))} |")
    print(f"abTEM took {float(images['seconds']):.0f} s, {case.phonon_count} phonon states a focus")
    _draw(name, pairs, out)


def _row(pair: Pair, far_yx: NDArray[np.bool_]) -> str:
    """Return r, r and contrast of the carbon alone, Si over mean carbon, and ours over theirs."""
    carbon = [one[far_yx] for one in pair]
    contrast = [one.std() / one.mean() for one in carbon]
    silicon = [one.max() / one[far_yx].mean() for one in pair]
    return (
        f"{np.corrcoef(*(one.ravel() for one in pair))[0, 1]:.3f} "
        f"| {np.corrcoef(*carbon)[0, 1]:.3f} "
        f"| {contrast[0]:.3f} | {contrast[1]:.3f} | {contrast[0] / contrast[1]:.3f} "
        f"| {silicon[0]:.2f} | {silicon[1]:.2f} | {carbon[0].mean() / carbon[1].mean():.2f}"
    )


def _far_from_silicon(truth: Array) -> NDArray[np.bool_]:
    """Return where the compared middle is carbon alone."""
    rows, columns = (_cut(grid) for grid in np.mgrid[:SIDE_PX, :SIDE_PX])
    silicon = truth[truth[:, 2] == 14][0]
    return np.asarray(np.hypot(rows - silicon[0], columns - silicon[1]) * PIXEL_PM > FAR_PM)


def _cut(frame_yx: Array) -> Array:
    """Return a frame at the places of the reference, its rim left out."""
    inside = slice(FIRST_PX + RIM * STRIDE, FIRST_PX + (COUNT - RIM) * STRIDE, STRIDE)
    return frame_yx[inside, inside]


def _reference_images(name: str, truth: Array) -> dict[str, Array]:
    """Return abTEM's image for each detector and defocus, spread of focus and source included."""
    case = CASES[name]
    blur_px = SOURCE_PM / FWHM_PER_SIGMA / (PIXEL_PM * STRIDE)
    spread_nm = FOCAL_SPREAD_NM / FWHM_PER_SIGMA
    nodes = [(round(node * spread_nm, 3), weight) for node, weight in foci(1.0)]
    needed = sorted({defocus + node for defocus in case.defoci_nm for node, _ in nodes})
    sharp = {}
    for focus_nm in needed:
        sharp[focus_nm] = _multislice(truth, case, focus_nm * 10 + DEPTH_A)
        print(f"{name}: abTEM focused at {focus_nm:g} nm", file=sys.stderr, flush=True)
    images = {}
    for defocus in case.defoci_nm:
        mean = sum(weight * sharp[defocus + node] for node, weight in nodes)
        for ring, image in zip(case.rings, mean, strict=True):
            blurred = ndimage.gaussian_filter(image, blur_px, mode="nearest")
            images[f"{ring}{defocus:g}"] = blurred[RIM:-RIM, RIM:-RIM]
    return images


def _multislice(truth: Array, case: Case, focus_a: float) -> Array:
    """Return one focus' images of the middle of the frame, one a detector; rows are y."""
    from ase import Atoms

    abtem = _abtem()
    pixel_a = PIXEL_PM / 100
    places = np.column_stack([truth[:, :2] * pixel_a, np.full(len(truth), DEPTH_A)])
    side = SIDE_PX * pixel_a
    atoms = Atoms(truth[:, 2].astype(int), places, cell=(side, side, 2 * DEPTH_A), pbc=True)
    phonons = abtem.FrozenPhonons(
        atoms, num_configs=case.phonon_count, sigmas=THERMAL_PM / 100, directions="xy", seed=1
    )
    potential = abtem.Potential(phonons, sampling=0.08, slice_thickness=2 * DEPTH_A)
    probe = abtem.Probe(
        energy=case.beam_kv * 1e3, semiangle_cutoff=case.convergence_mrad, defocus=focus_a
    )
    probe.grid.match(potential)
    first, last = FIRST_PX * pixel_a, (FIRST_PX + COUNT * STRIDE) * pixel_a
    scan = abtem.GridScan((first, first), (last, last), gpts=(COUNT, COUNT), endpoint=False)
    detectors = [abtem.AnnularDetector(*ring) for ring in case.rings.values()]
    measured = probe.scan(potential, scan=scan, detectors=detectors).compute()
    return np.stack([one.array for one in measured])


def _print_platinum() -> None:
    """Print the mean Pt atom on 3 nm of amorphous carbon: width, and height over the carbon."""
    print(f"\nPt on {SUPPORT_NM:g} nm of amorphous carbon, 200 kV, 25 mrad, 70-150 mrad, in focus")
    print("| side | FWHM, pm | peak over carbon | Pt, 1e-3 A2 | carbon, 1e-3 of the beam |")
    print("|---|---|---|---|---|")
    sides = {"ours": _platinum_of_ours, "abTEM": _platinum_of_reference}
    for side, made in sides.items():
        radius_pm, profile = made()
        carbon = profile[radius_pm > 250].mean()
        above = profile - carbon
        falling = -above[: above.argmin() + 1] / above[0]
        width = 2 * np.interp(-0.5, falling, radius_pm[: len(falling)])
        near = radius_pm <= 250
        power = np.trapezoid((2 * np.pi * radius_pm * above)[near], radius_pm[near]) / 1e4
        print(
            f"| {side} | {width:.0f} | {above[0] / carbon:.2f} | {power * 1e3:.2f} "
            f"| {carbon * 1e3:.2f} |"
        )


def _platinum_of_ours() -> tuple[Array, Array]:
    """Return (radius in pm, mean share of the beam) around atoms that stand alone."""
    optics = {"beam_kv": 200, "convergence_mrad": 25, "focal_spread_nm": 0, "source_fwhm_pm": 60}
    condition = Condition.model_validate(
        {
            "id": "platinum",
            "sample": {
                "structure": "heavy_atoms",
                "atomic_number": 78,
                "atoms_per_nm2": 0.2,
                "atom_width_pm": 0,
                "signal_spread": 0,
                "support_nm": SUPPORT_NM,
                "support_relief": 0,
                "hole_probability": 0,
            },
            "optics": optics,
            "detector": {"readout_e": 0, "detector_inner_mrad": 70, "detector_outer_mrad": 150},
            "scan": {"pixel_size_pm": 20, "row_jitter_pm": 0},
            "state": {"background": 0},
            "dose_e_per_a2": DOSE,
        }
    )
    made = simulate(condition, 12, seed=0, shape=(400, 400))
    profiles = []
    for frame, truth in zip(made.frames_nyx / (DOSE * 0.2**2), made.truth, strict=True):
        apart = np.hypot(*(truth[:, None, :2] - truth[None, :, :2]).transpose(2, 0, 1)) * 20
        alone = (apart + 1e9 * np.eye(len(truth))).min(axis=1) > 1000
        inside = ((truth[:, :2] > 25) & (truth[:, :2] < 375)).all(axis=1)
        profiles += [_profile(frame, y, x, 20.0)[1] for y, x, _ in truth[alone & inside]]
    return _profile(frame, 200, 200, 20.0)[0], np.mean(profiles, axis=0)


def _platinum_of_reference() -> tuple[Array, Array]:
    """Return the same of abTEM: one Pt atom over each of some random supports."""
    from ase import Atoms

    abtem = _abtem()
    side, depth, count = 20.0, 34.0, 32
    profiles = []
    for seed in range(3):
        carbon = _random_carbon(side, seed)
        places = np.vstack([[side / 2, side / 2, DEPTH_A], carbon + np.array([0.0, 0.0, 2.5])])
        symbols = ["Pt"] + ["C"] * len(carbon)
        atoms = Atoms(symbols, places, cell=(side, side, depth), pbc=True)
        phonons = abtem.FrozenPhonons(atoms, num_configs=1, sigmas=THERMAL_PM / 100, seed=seed)
        potential = abtem.Potential(phonons, sampling=0.055, slice_thickness=2.0)
        probe = abtem.Probe(energy=200e3, semiangle_cutoff=25.0, defocus=DEPTH_A)
        probe.grid.match(potential)
        scan = abtem.GridScan((6, 6), (14, 14), gpts=(count, count), endpoint=False)
        image = probe.scan(potential, scan=scan, detectors=abtem.AnnularDetector(70, 150))
        image = ndimage.gaussian_filter(
            image.compute().array, 60 / FWHM_PER_SIGMA / 25, mode="wrap"
        )
        profiles.append(_profile(image, count / 2, count / 2, 25.0)[1])
        print(f"platinum: abTEM on support {seed}", file=sys.stderr, flush=True)
    return _profile(image, count / 2, count / 2, 25.0)[0], np.mean(profiles, axis=0)


def _random_carbon(side_a: float, seed: int) -> Array:
    """Return places of amorphous carbon, none nearer than 1.4 A to another."""
    rng = np.random.default_rng(seed)
    size = np.array([side_a, side_a, SUPPORT_NM * 10])
    kept = np.empty((0, 3))
    while len(kept) < CARBON_PER_NM3 * size.prod() / 1000:
        place = rng.uniform(0, size)
        apart = kept - place
        apart[:, :2] -= side_a * np.round(apart[:, :2] / side_a)
        if not len(kept) or (apart**2).sum(axis=1).min() > 1.4**2:
            kept = np.vstack([kept, place])
    return kept


def _profile(image_yx: Array, y: float, x: float, pixel_pm: float) -> tuple[Array, Array]:
    """Return (radius in pm, mean over all azimuths) around one place."""
    radius_pm = np.arange(0, 376, 12.5)
    azimuth = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    ring = radius_pm[:, None] / pixel_pm * np.array([np.sin(azimuth), np.cos(azimuth)])[:, None]
    places = ring + np.array([y, x])[:, None, None]
    return radius_pm, ndimage.map_coordinates(image_yx, places, order=3).mean(axis=1)


def _print_thick() -> None:
    """Print columns of SrTiO3 [001] against thickness, per nanometre, 1 where it is thin.

    Incoherent imaging says 1 at any thickness.
    """
    print("\nSrTiO3 [001], 200 kV, 25 mrad, 70-165 mrad, focus on the entrance: signal per nm")
    print("| thickness, nm | Sr | Ti-O | Sr over Ti-O |")
    print("|---|---|---|---|")
    first = None
    for thickness_nm, signal in _column_signals():
        per_nm = signal / thickness_nm
        first = per_nm if first is None else first
        share = per_nm / first
        print(
            f"| {thickness_nm:.1f} | {share[0]:.2f} | {share[1]:.2f} "
            f"| {signal[0] / signal[1]:.2f} |"
        )


def _column_signals() -> Iterator[tuple[float, Array]]:
    """Yield (thickness in nm, signal on the Sr and on the Ti-O column) of SrTiO3 [001]."""
    from ase.spacegroup import crystal

    abtem = _abtem()
    constant = 3.905
    fractions = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)]
    cell = crystal(["Sr", "Ti", "O"], fractions, spacegroup=221, cellpar=[constant] * 3 + [90] * 3)
    layer_count = 128
    atoms = cell * (5, 5, layer_count)
    phonons = abtem.FrozenPhonons(atoms, num_configs=4, sigmas=THERMAL_PM / 100, seed=3)
    exits = [2 * n - 1 for n in (4, 8, 16, 32, 64, 128)]
    potential = abtem.Potential(
        phonons, sampling=0.05, slice_thickness=constant / 2, exit_planes=tuple(exits)
    )
    probe = abtem.Probe(energy=200e3, semiangle_cutoff=25.0)
    probe.grid.match(potential)
    middle = 2 * constant
    places = [(middle, middle), (middle + constant / 2, middle + constant / 2)]
    detector = abtem.AnnularDetector(70, 165)
    measured = probe.scan(potential, scan=abtem.CustomScan(places), detectors=detector).compute()
    signals = measured.array[-len(exits) :]
    for layer, signal in zip(exits, signals, strict=True):
        yield (layer + 1) * constant / 20, signal


def _draw(case: str, pairs: dict[tuple[str, float], Pair], out: Path) -> None:
    """Write one figure: ours, the reference, and the row through the brightest atom."""
    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(pairs), 3, figsize=(8, 2.4 * len(pairs)))
    for (ring, defocus), pair, row in zip(pairs, pairs.values(), axes, strict=True):
        brightest = np.unravel_index(pair[1].argmax(), pair[1].shape)[0]
        for axis, image, name in zip(row, pair, ("ours", "abTEM"), strict=False):
            axis.imshow(image, cmap="gray")
            axis.set_title(f"{name} {ring} {defocus:g} nm", fontsize=8)
            axis.axis("off")
            along = image[brightest] / image.mean()
            row[2].plot(np.arange(len(along)) * PIXEL_PM * STRIDE, along, label=name)
        row[2].legend(fontsize=6)
        row[2].set_xlabel("pm")
    figure.tight_layout()
    figure.savefig(out / f"{case}.png", dpi=80)


if __name__ == "__main__":
    main()
