"""Damaged files of every format: each must be read, or refused with an error of ours, in time.

    python tests/benchmarks/fuzz_files.py --count 100000 --seed 1 --out bench/fuzz

Every number of every seed is one file, made of a small valid one by a few random changes, so that a
finding can be repeated: `--first NUMBER --count 1 --keep` writes it to --out. One process reads;
should it crash, another goes on behind that file. Files of HDF5 cost a second each, so few of them
are made.

The report names what is not an error of ours, what takes above 10 s of processor time, messages in
the words of a library, and the greatest memory of one file beside what was in use before.

Whether memory stays flat: `resident_mb` has the memory in use after 1, 10, 20 to 100 % of the
files. Up to 1 % the readers warm up (libraries are imported when a file needs them). glibc keeps up
to 64 MB of what was freed in each of its arenas for the next array, which is no leak. So the worker
has one arena, and before each figure it gives back what is free (`malloc_trim`, which does not
reach the top of other arenas); `kept_mb` has the memory before.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

from manybeam.data.io.reading import read_frames
from manybeam.errors import ManybeamError

sys.path.append(str(Path(__file__).parents[1]))
from test_reading import GOOD, IMAGE, STACK, write_tif

LIMIT_S = 10.0
STEPS = (0.01, *(tenth / 10 for tenth in range(1, 11)))  # shares after which memory is told
HDF5_SHARE = 0.01
BIG = np.tile(IMAGE, (6, 6))
FLOATS = BIG.astype(np.float32)
INTERESTING = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
# Words that only a programmer understands.
INTERNALS = re.compile(
    r"\b(object|argument|NoneType|bytes-like|dtype|tuple|iterable|sequence|unpack|broadcast|"
    r"codec|decode|traceback|KeyError|ValueError|TypeError|IndexError|buffer|subscriptable|"
    r"attribute|keyword|positional|invalid literal|could not convert|errno)\b|<class|0x[0-9a-f]{4}"
)

SEEDS: dict[str, Callable[[Path], Path]] = GOOD | {
    "lzw.tif": lambda path: write_tif(path, BIG, compression="lzw", rowsperstrip=8),
    "jpeg.tif": lambda path: write_tif(path, BIG, compression="jpeg", tile=(32, 32)),
    "float.tif": lambda path: write_tif(path, FLOATS, compression="zlib", predictor=True),
    "stack.tif": lambda path: write_tif(path, STACK, photometric="minisblack"),
    "imagej.tif": lambda path: write_tif(
        path, STACK, imagej=True, resolution=(50, 50), metadata={"unit": "nm", "axes": "TYX"}
    ),
    "images.ome.tif": lambda path: write_tif(
        path, STACK, ome=True, metadata={"axes": "TYX", "PhysicalSizeX": 0.02}
    ),
    "pages.tif": lambda path: _pages(path),
    "big.tif": lambda path: write_tif(path, BIG, bigtiff=True),
    "a.jpg": lambda path: _pillow(path, quality=80, progressive=True),
    "deep.png": lambda path: _pillow(path),
    "stack.npy": lambda path: (np.save(path, STACK), path)[1],
}


def _pages(path: Path) -> Path:
    with tifffile.TiffWriter(path) as file:
        for pixels in (BIG[::2, ::2], BIG.astype(np.uint16), np.stack([BIG] * 3, axis=-1)):
            kind = "rgb" if pixels.ndim == 3 else "minisblack"
            file.write(pixels, photometric=kind, metadata=None)
    return path


def _pillow(path: Path, **options: bool | int) -> Path:
    from PIL import Image

    Image.fromarray(BIG).save(path, **options)
    return path


def damaged(content: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """Return a valid file after one to four random changes."""
    found = bytearray(content)
    for _ in range(random.integers(1, 5)):
        # Half of the changes hit the start, where headers are.
        reach = len(found) if random.random() < 0.5 else min(len(found), 512)
        at = int(random.integers(0, max(reach, 1)))
        kind = random.integers(0, 8)
        if kind <= 2:
            found[at : at + 1] = bytes([random.integers(0, 256)])
        elif kind <= 4:
            width = int(random.choice([1, 2, 4, 8]))
            value = int(random.choice([*INTERESTING, len(found), int(random.integers(0, 1 << 32))]))
            order = "little" if random.random() < 0.7 else "big"
            found[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, order)
        elif kind == 5:
            del found[at : at + int(random.integers(1, 64))]
        elif kind == 6:
            start = int(random.integers(0, len(other)))
            found[at : at + 32] = other[start : start + int(random.integers(1, 64))]
        else:
            del found[max(1, int(random.integers(1, len(found) + 1))) :]
        if not found:
            found = bytearray(b"\0")
    return bytes(found)


def made(seed: int, number: int, valid: dict[str, bytes]) -> tuple[str, bytes]:
    """Return name and content of one damaged file; equal for equal seed and number."""
    random = np.random.default_rng([seed, number])
    is_hdf5 = random.random() < HDF5_SHARE
    names = sorted(name for name in valid if name.endswith(".emd") == is_hdf5) or sorted(valid)
    name = names[random.integers(len(names))]
    alike = [one for one in sorted(valid) if Path(one).suffix == Path(name).suffix]
    return name, damaged(valid[name], valid[alike[random.integers(len(alike))]], random)


def valid_files(folder: Path) -> dict[str, bytes]:
    """Return the content of one valid file of each kind."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return {name: write(folder / name).read_bytes() for name, write in SEEDS.items()}


def outcome(path: Path) -> tuple[str, str]:
    """Return what came of reading a file: read, refused, or what must not come; and its words."""
    try:
        read_frames(path)
    except ManybeamError as error:
        words = f"{error.why} {error.hint}" if str(path) in error.what else str(error)
        return ("internals" if INTERNALS.search(words) else "refused"), words
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return "crash", f"{type(error).__name__}: {error}"
    return "read", ""


def _peak_mb(*, reset: bool) -> float:
    """Return the greatest memory since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024  # type: ignore[index] # Linux has it


def work(seed: int, first: int, last: int, out: Path) -> None:
    """Read the files of some numbers; one line of JSON for each finding, and the last number."""
    valid = valid_files(out / "valid")
    (out / "now_1.ser").write_bytes(valid["a_1.ser"])  # which now.emi needs
    counts: Counter[str] = Counter()
    slowest, most_mb, started = 0.0, 0.0, time.monotonic()
    steps = {first + max(0, round(share * (last - first)) - 1): share for share in STEPS}
    memory: dict[str, dict[str, float]] = {"kept_mb": {}, "resident_mb": {}}
    with (out / "findings.jsonl").open("a") as findings:
        for number in range(first, last):
            (out / "at").write_text(str(number))
            name, content = made(seed, number, valid)
            path = out / f"now{Path(name).suffix}"
            path.write_bytes(content)
            before = _peak_mb(reset=True)
            began = _cpu_s()
            kind, words = outcome(path)
            took = _cpu_s() - began
            used = _peak_mb(reset=False) - before
            counts[kind] += 1
            slowest, most_mb = max(slowest, took), max(most_mb, used)
            if kind in ("crash", "internals") or took > LIMIT_S or used > 300:
                row = {"number": number, "name": name, "kind": kind, "s": round(took, 2)}
                findings.write(json.dumps(row | {"mb": round(used), "words": words}) + "\n")
                findings.flush()
            if number in steps:
                share = f"{steps[number]:.0%}"
                memory["kept_mb"][share] = round(_resident_mb(), 1)
                _give_back()
                memory["resident_mb"][share] = round(_resident_mb(), 1)
            if number % 100 == 0 or number in steps:
                row = {"at": number, **counts, "slowest_s": round(slowest, 2)}
                row |= {"most_mb": round(most_mb), "s": round(time.monotonic() - started)}
                (out / f"counts-{first}.json").write_text(json.dumps(row | memory))


def _cpu_s() -> float:
    """Return the processor time of this process and of the readers that it started."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _give_back() -> None:
    """Let the C library give freed memory back to the system (glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+)", status)[1]) / 1024  # type: ignore[index] # Linux has it


def main() -> None:
    """Read all files; a process that dies is a finding, and another one goes on."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("bench/fuzz"))
    parser.add_argument("--keep", action="store_true", help="write the first file, read nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    last = args.first + args.count
    if args.keep:
        name, content = made(args.seed, args.first, valid_files(args.out / "valid"))
        kept = args.out / f"{args.seed}-{args.first}-{name}"
        kept.write_bytes(content)
        print(kept)
    elif args.worker:
        work(args.seed, args.first, last, args.out)
    else:
        first = args.first
        while first < last:
            command = [sys.executable, __file__, "--worker", "--seed", str(args.seed)]
            command += ["--first", str(first), "--count", str(last - first), "--out", str(args.out)]
            one_arena = os.environ | {"MALLOC_ARENA_MAX": "1"}
            done = subprocess.run(command, check=False, env=one_arena)
            at = int((args.out / "at").read_text())
            if done.returncode == 0:
                break
            with (args.out / "findings.jsonl").open("a") as findings:
                row = {"number": at, "kind": "died", "exit": done.returncode}
                findings.write(json.dumps(row) + "\n")
            first = at + 1
        for path in sorted(args.out.glob("counts-*.json")):
            print(path.read_text())
        found = args.out / "findings.jsonl"
        print(found.read_text() if found.exists() else "no finding")


if __name__ == "__main__":
    main()
