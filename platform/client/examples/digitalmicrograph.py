"""Atoms of the front image, as marks on it: run it inside of GMS (Digital Micrograph, Python 3.7).

Install once, in the Python of GMS: `pip install manybeam-client`. Set MANYBEAM_URL and
MANYBEAM_TOKEN for the user, or write them below. `predict` is called in GMS's own thread, because
DM objects must not be used in another one.
"""

import DigitalMicrograph as DM  # noqa: N817 - its name in every script of GMS
import numpy as np

from manybeam_client import Session

INSTRUMENT = "GMS-1"
PM_PER = {"pm": 1.0, "nm": 1e3, "A": 1e2, "Å": 1e2}
MARK_PX = 2


def pixel_size_pm(image):
    """Return the edge of a pixel of an image [pm]; None if it is not calibrated or out of range."""
    _, scale, unit = image.GetDimensionCalibration(0, 0)
    size_pm = abs(scale) * PM_PER.get(unit, 0.0)
    # Out of this range, as at low magnification, `predict` would raise and end the script.
    return size_pm if 1 <= size_pm <= 500 else None


def mark(display, atoms):
    """Draw a small region around each atom."""
    for y, x in np.asarray(atoms[:, :2], float).tolist():
        region = DM.NewROI()
        region.SetRectangle(y - MARK_PX, x - MARK_PX, y + MARK_PX, x + MARK_PX)
        display.AddROI(region)


def main():
    """Send the front image, and mark what was found."""
    image = DM.GetFrontImage()
    with Session(instrument=INSTRUMENT, deadline_ms=5000) as session:
        frame = image.GetNumArray().copy()
        answer = session.predict(frame, pixel_size_pm=pixel_size_pm(image))
    if not answer:
        DM.OkDialog(f"no answer: {answer.error}")
        return
    mark(image.GetImageDisplay(0), answer.atoms)
    print(f"{len(answer.atoms)} atoms; {answer.why or 'no reason was given'}")


if __name__ == "__main__":
    main()
