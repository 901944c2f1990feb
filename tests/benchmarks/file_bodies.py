"""What an instrument file costs more than an array, as the body of a request to a running service.

    python tests/benchmarks/file_bodies.py --url http://127.0.0.1:8100 --ref graphene

It sends one simulated frame of 1024 x 1024 in turn as .npy, .tif (plain and packed), .mrc and .emd,
and prints the median of the stage `read` and of the whole request for each, after the first.
`MANYBEAM_TOKEN` is sent if it is set.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import tifffile
import urllib3

SIDE, SIZE_PM = 1024, 16.0


def bodies(folder: Path) -> dict[str, bytes]:
    """Return the files of one frame, by name."""
    frame = np.random.default_rng(0).poisson(50, (SIDE, SIDE)).astype(np.uint16)
    np.save(folder / "frame.npy", frame)
    tifffile.imwrite(folder / "frame.tif", frame)
    tifffile.imwrite(folder / "packed.tif", frame, compression="zlib")
    with mrcfile.new(folder / "frame.mrc", frame) as file:
        file.voxel_size = SIZE_PM / 100
    with h5py.File(folder / "frame.emd", "w") as file:
        group = file.create_group("data/frame")
        group.attrs["emd_group_type"] = 1
        group["data"] = frame
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--url", default="http://127.0.0.1:8100")
    parser.add_argument("--ref", default="graphene")
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = bodies(Path(folder))
    read: dict[str, list[float]] = {name: [] for name in ("array", *files)}
    whole: dict[str, list[float]] = {name: [] for name in read}
    with urllib3.PoolManager(retries=False) as pool:
        for _ in range(given.rounds):
            for name in read:
                query = f"pixel_size_pm={SIZE_PM}&quick=true&members=0"
                query += "" if name == "array" else f"&filename={name}"
                media = "application/x-npy" if name == "array" else "application/octet-stream"
                headers = {"Content-Type": media}
                if token := os.environ.get("MANYBEAM_TOKEN"):
                    headers["Authorization"] = f"Bearer {token}"
                body, begun = files["frame.npy" if name == "array" else name], time.perf_counter()
                url = f"{given.url}/v1/predict/{given.ref}?{query}"
                answer = pool.request("POST", url, body=body, headers=headers)
                whole[name].append((time.perf_counter() - begun) * 1000)
                if answer.status != 200:
                    raise SystemExit(answer.data.decode())
                with np.load(io.BytesIO(answer.data)) as found:
                    meta = json.loads(found["meta"].tobytes())
                read[name].append(meta["timings_ms"]["read"])
    for name in read:
        first, *others = read[name]
        middle, whole_ms = statistics.median(others), statistics.median(whole[name][1:])
        print(f"{name:12} read {middle:6.1f} ms (first {first:6.1f}), whole {whole_ms:6.0f} ms")


if __name__ == "__main__":
    main()
