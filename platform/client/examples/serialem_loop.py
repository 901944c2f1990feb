"""A loop for SerialEM's Python: record, send, log what was found, go on.

Inside SerialEM (Python scripting) it records. Elsewhere it reads .npy files of a folder instead:

    python serialem_loop.py http://127.0.0.1:8100 FOLDER [COUNT]

It is not called serialem.py, because it would then import itself instead of SerialEM's module.
"""

import sys
from pathlib import Path

import numpy as np

from manybeam_client import Session

try:
    import serialem
except ImportError:  # not inside SerialEM
    serialem = None


class Recorder:
    """Records with SerialEM; it has a folder instead if there is no microscope."""

    def __init__(self, folder):
        self._files = sorted(Path(folder).glob("*.npy")) if folder else []

    def frames(self, count):
        """Yield up to so many pairs (frame, pixel size [pm])."""
        for number in range(count):
            if serialem is not None and not self._files:
                serialem.Record()
                # Buffer A has the new image; its properties are sizes, binning, exposure, pixel.
                size_nm = serialem.ImageProperties("A")[4]
                yield np.array(serialem.bufferImage("A")), size_nm * 1000
            elif number < len(self._files):
                yield np.load(str(self._files[number])), 16.0


def known_size(size_pm):
    """Return a pixel size that Manybeam takes, 1 to 500 pm; else None, and the frame is answered.

    At low magnification there are no atoms to see, and an image without calibration states 0; a
    pixel size out of the range would raise and end the loop.
    """
    return size_pm if 1 <= size_pm <= 500 else None


def say(text):
    """Write a line to SerialEM's log, or to the terminal."""
    if serialem is not None:
        serialem.Echo(text)
    else:
        print(text)


def main(url, folder="", count="10"):
    """Run the loop; it never stops because of the network."""
    with Session(url, instrument="TEM-1", deadline_ms=3000) as session:
        for frame, size_pm in Recorder(folder).frames(int(count)):
            answer = session.predict(frame, pixel_size_pm=known_size(size_pm))
            say(f"{len(answer.atoms)} atoms" if answer else f"no answer: {answer.error}")
            if answer.drifted:
                say("the frames are out of distribution: look at the microscope")
        say(repr(session.stats))


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["http://127.0.0.1:8100"]))
