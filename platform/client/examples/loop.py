"""A scan loop in ten lines, with simulated frames so that it runs anywhere.

python loop.py http://127.0.0.1:8100
"""

import sys
import time

import numpy as np

from manybeam_client import Session


def scan(count):
    """Yield frames of a square lattice with noise, 64 x 64 px at 16 pm."""
    y, x = np.mgrid[:64, :64] * (2 * np.pi / 12)
    for number in range(count):
        time.sleep(0.1)  # a scan takes its time
        noise = np.random.RandomState(number).normal(0, 0.3, (64, 64))
        yield (np.cos(y) + np.cos(x) + noise).astype(np.float32)


def main(url, count=20):
    """Send the frames of a scan, and say what came back."""
    with Session(url, instrument="SIMULATED", deadline_ms=2000, pixel_size_pm=16) as stem:
        for answer in stem.stream(scan(count), policy="latest", in_flight=2):
            if answer:
                print(
                    f"{len(answer.atoms)} atoms, version {answer.version}, {answer.took_ms:.0f} ms"
                )
            else:
                print(answer.error)
        print(stem.stats)


if __name__ == "__main__":
    main(*sys.argv[1:2])
