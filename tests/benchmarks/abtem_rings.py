"""Two things multislice says of graphene: where the focus lies, and how an atom responds.

    pip install -e '.[validate]'
    python tests/benchmarks/abtem_rings.py

The first table is the contrast against defocus with the atoms at two depths below the plane where
the beam enters: abTEM's defocus counts from that plane. The second is what is left of the two
rings of graphene's spectrum once probe and thermal motion are divided out: what
`data.simulation.optics.ATOM_SHARE` stands for, and what tests/test_optics.py holds it to.
"""

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manybeam.data.simulation.optics import THERMAL_PM

Array = NDArray[np.floating]
LATTICE_A = 2.46
CELL_A = np.array([LATTICE_A, LATTICE_A * np.sqrt(3)])  # two atoms wide, four atoms in all
GRID = (8, 12)  # places scanned in one cell
RINGS_PER_A = (2 / (LATTICE_A * np.sqrt(3)), 2 / LATTICE_A)
BEAMS = {
    (60.0, 30.0): ((40, 200), (55, 200), (70, 200), (90, 200)),
    (80.0, 25.0): ((50, 185), (80, 185)),
}


def main() -> None:
    """Print both tables as Markdown."""
    print("| depth, nm | defocus, nm | contrast, 40-200 mrad | 70-200 mrad |\n|---|---|---|---|")
    for depth_a in (0.5, 3.0):
        for focus_nm in (-6, -3, 0, 3, 6):
            images, _ = _images((60.0, 30.0), ((40, 200), (70, 200)), depth_a, focus_nm * 10, 2)
            cells = " | ".join(f"{one.std() / one.mean():.3f}" for one in images)
            print(f"| {depth_a / 10:g} | {focus_nm} | {cells} |", flush=True)
    print("\n| kV | detector, mrad | first ring | second ring |\n|---|---|---|---|")
    for beam, rings in BEAMS.items():
        images, edge = _images(beam, rings, 0.5, 0.5, 4)
        for ring, image in zip(rings, images, strict=True):
            first, second = _responses(image, beam) / edge
            print(f"| {beam[0]:g} | {ring[0]}-{ring[1]} | {first:.3f} | {second:.3f} |", flush=True)


def _images(
    beam: tuple[float, float], rings: Any, depth_a: float, focus_a: float, phonon_count: int
) -> tuple[list[Array], float]:
    """Return one image a detector, and by how much abTEM's soft aperture edge raises contrast."""
    from ase import Atoms

    abtem = _abtem()
    beside = np.array([[0, 0], [0.5, 0.5], [0, 1 / 3], [0.5, 5 / 6]]) * CELL_A
    places = np.column_stack([beside, np.full(4, depth_a)])
    atoms = Atoms("C4", places, cell=(*CELL_A, 2 * depth_a), pbc=True) * (8, 5, 1)
    phonons = abtem.FrozenPhonons(atoms, num_configs=phonon_count, sigmas=THERMAL_PM / 100, seed=2)
    potential = abtem.Potential(phonons, sampling=0.075, slice_thickness=1.0)
    probe = abtem.Probe(energy=beam[0] * 1e3, semiangle_cutoff=beam[1], defocus=focus_a)
    probe.grid.match(potential)
    amplitude = np.abs(np.fft.fft2(probe.build(lazy=False).array))
    amplitude /= amplitude.max()
    scan = abtem.GridScan((0, 0), tuple(2 * CELL_A), gpts=tuple(2 * np.array(GRID)), endpoint=False)
    detectors = [abtem.AnnularDetector(*ring) for ring in rings]
    measured = probe.scan(potential, scan=scan, detectors=detectors).compute()
    folded = [one.array.reshape(2, GRID[0], 2, GRID[1]).mean((0, 2)) for one in measured]
    return folded, float(amplitude.sum() / (amplitude**2).sum())


def _abtem() -> ModuleType:
    import abtem
    import dask

    abtem.config.set({"diagnostics.progress_bar": False})
    dask.config.set(scheduler="single-threaded")
    return abtem


def _responses(image: Array, beam: tuple[float, float]) -> Array:
    """Return what probe and thermal motion leave of the two rings."""
    spectrum = np.fft.fft2(image) / image.sum()
    fx = np.fft.fftfreq(GRID[0], CELL_A[0] / GRID[0])[:, None]
    fy = np.fft.fftfreq(GRID[1], CELL_A[1] / GRID[1])[None]
    x, y = (np.array([[0, 0], [0.5, 0.5], [0, 1 / 3], [0.5, 5 / 6]]) * CELL_A).T
    atoms = np.exp(-2j * np.pi * (fx[..., None] * x + fy[..., None] * y)).mean(-1)
    left = []
    for ring in RINGS_PER_A:
        on_ring = (np.abs(np.hypot(fx, fy) - ring) < 0.02) & (np.abs(atoms) > 0.1)
        thermal = np.exp(-2 * (np.pi * THERMAL_PM / 100 * ring) ** 2)
        seen = (spectrum[on_ring] / atoms[on_ring]).real.mean()
        left.append(seen / thermal / _round_aperture(ring, *beam))
    return np.array(left)


def _round_aperture(ring: float, beam_kv: float, convergence_mrad: float) -> float:
    """Return the transfer of a lens without aberrations."""
    volt = beam_kv * 1e3
    wavelength_a = 12.2639 / np.sqrt(volt * (1 + 0.97845e-6 * volt))
    x = ring * wavelength_a / (2e-3 * convergence_mrad)
    return float(2 / np.pi * (np.arccos(x) - x * np.sqrt(1 - x * x)))


if __name__ == "__main__":
    main()
