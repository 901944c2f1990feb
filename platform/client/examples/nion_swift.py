"""Nion Swift sends each finished scan to Manybeam, and reads the atoms while the next one runs.

Nion Swift is GPL-3, so give it an environment of its own; this file is in no package:

    python3 -m venv nion
    nion/bin/pip install 'manybeam-client[stream]'
    nion/bin/pip install nionswift nionswift-instrumentation nionswift-usim
    nion/bin/python nion_swift.py --url http://127.0.0.1:8100 --frames 20

As it stands it starts Nion's simulated microscope without a window, with graphene on its stage, so
what should be found is known. At a real microscope, run it in Swift (Scripting, Run Script) with
`main(scan)`, where `scan` is `api.get_hardware_source_by_id("scan_controller")`.

Tried with nionswift 16.16, nionswift-instrumentation 23.6, nionswift-usim 5.4.
"""

import argparse
import os
import tempfile
from typing import Any, Iterator

import numpy as np

from manybeam_client import Session

BOND_NM = 0.142
FOV_NM, SIDE_PX = 4.0, 256
PM = {"pm": 1.0, "nm": 1e3, "um": 1e6, "µm": 1e6}


def frames(scan: Any, count: int) -> Iterator[Any]:
    """Yield scans as they are finished, each with the pixel size that Swift knows."""
    scan.start_playing()
    try:
        for _ in range(count):
            xdata = scan.get_next_xdatas_to_finish(timeout=20)[0]
            axis = xdata.dimensional_calibrations[-1]
            yield xdata.data, {"pixel_size_pm": axis.scale * PM[axis.units]}
    finally:
        scan.abort_playing()


def show(answer: Any) -> None:
    """Print one answer: in Swift, this is the place to draw it or to move the probe."""
    if answer.error:
        print(f"{answer.frame_id}: {answer.error}")
        return
    said = "out of distribution" if answer.drifted else "in distribution"
    print(
        f"{answer.frame_id}: {len(answer.atoms)} atoms by members {answer.members} of "
        f"{answer.version}, {said}, {answer.took_ms:.0f} ms"
    )


def main(scan: Any, url: str, count: int) -> list:
    """Stream scans until `count` were answered; return the answers."""
    answers = []
    with Session(url, instrument="nion-usim") as stem:
        for answer in stem.stream(frames(scan, count), policy="all"):
            show(answer)
            answers.append(answer)
    return answers


# -- the simulated microscope ----------------------------------------------------------------
def nearest_nm(y_nm: np.ndarray, x_nm: np.ndarray) -> np.ndarray:
    """Return the distance of points from the nearest atom of a sheet of graphene [nm]."""
    edge_nm, found = BOND_NM * np.sqrt(3), []
    for shift_nm in (0.0, BOND_NM):  # the two atoms of a cell of (1.5 bond, edge / 2), (0, edge)
        along = (y_nm - shift_nm) / (1.5 * BOND_NM)
        for one in (np.floor(along), np.ceil(along)):
            across = x_nm / edge_nm - one / 2
            away_x = edge_nm * (across - np.round(across))
            found.append(np.hypot(y_nm - shift_nm - one * 1.5 * BOND_NM, away_x))
    return np.min(found, axis=0)


def graphene() -> Any:
    """Return the class of a sample of Nion's simulator: a sheet of graphene in focus."""
    from nion.usim_device import SampleSimulator

    class Graphene(SampleSimulator.Sample):
        """A sheet that is larger than the stage."""

        title, features = "Graphene", ()

        def __init__(self, stage_size_nm: float) -> None:
            """It is the same on a stage of any size."""

        def plot_features(
            self, data: Any, offset_m: Any, fov_nm: Any, extra_nm: Any, center_nm: Any, _: Any
        ) -> None:
            """Draw the atoms in view."""
            sides = zip(data.shape, fov_nm, extra_nm, offset_m, center_nm)
            y_nm, x_nm = (
                (np.arange(count) - count // 2) * (fov + extra) / count - 1e9 * offset + centre
                for count, fov, extra, offset, centre in sides
            )
            away_nm = nearest_nm(*np.meshgrid(y_nm, x_nm, indexing="ij"))
            data += np.exp(-(away_nm**2) / (2 * 0.04**2))

    return Graphene


def simulated(url: str, count: int) -> list:
    """Run `main` on Nion's simulated microscope; return the answers."""
    os.chdir(tempfile.mkdtemp())  # Swift writes its data into the folder where it is
    from nion.instrumentation.test import AcquisitionTestContext
    from nion.swift.test import TestContext
    from nion.usim_device import DeviceConfiguration, SampleSimulator

    SampleSimulator.RectangleFlakeSample = graphene()  # the sample that is on the stage at first
    setup = TestContext.TestSetup()
    configuration = DeviceConfiguration.AcquisitionContextConfiguration()
    with AcquisitionTestContext.AcquisitionTestContext(configuration) as context:
        scan = context.scan_hardware_source
        parameters = scan.get_frame_parameters(0)
        parameters.fov_nm, parameters.pixel_time_us = FOV_NM, 1.0
        scan.set_current_frame_parameters(parameters)
        answers = main(scan, url, count)
    del setup
    return answers


def compare(answers: list) -> None:
    """Tell how much of the sheet was found."""
    there = 4 * FOV_NM**2 / (3 * np.sqrt(3) * BOND_NM**2)
    for answer in filter(None, answers):
        y_nm, x_nm = (answer.atoms[:, :2].T - SIDE_PX // 2) * FOV_NM / SIDE_PX
        away_pm = 1000 * nearest_nm(y_nm, x_nm)
        good = int((away_pm < 50).sum())
        print(
            f"{answer.frame_id}: {good} of about {there:.0f} atoms of the sheet, "
            f"{len(away_pm) - good} false, {np.median(away_pm):.0f} pm off in the median"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8100")
    parser.add_argument("--frames", type=int, default=20)
    given = parser.parse_args()
    compare(simulated(given.url, given.frames))
