"""Makes the drift watch of a version's known conditions, in a process of its own.

    python -m manybeam.serve.monitor.known_frames REF sized|unsized FRAMES FILE

It takes some seconds of a core and the memory of torch, so it has the lowest priority. It ends when
the process that started it does, which holds its standard input open.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

SHAPE = (128, 128)  # features of drift rest on crops of this size


def main(ref: str, size: str, frames: str, path: str) -> int:
    """Write the state of the watch, or why there is none; return the exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(19)
    from manybeam.data.disk import write_files
    from manybeam.errors import InvalidInput, ManybeamError, exit_code
    from manybeam.predictor.stream.advice import known_frames
    from manybeam.predictor.stream.drift import DriftWatch
    from manybeam.spec.facility import facility_library
    from manybeam.zoo.registry import Zoo

    try:
        matrix, library = Zoo().matrix(ref), facility_library()
        known = known_frames(
            matrix, library, SHAPE, has_pixel_size=size == "sized", count=int(frames)
        )
    except InvalidInput as error:  # it knows no condition that can be simulated
        content: dict[str, Any] = {"state": None, "why": str(error)}
    except ManybeamError as error:
        sys.stderr.write(f"{error}\n")
        return exit_code(error)
    else:
        watch = DriftWatch(known.features_ns, known.condition_n.tolist())
        content = {"state": watch.state(), "conditions": known.conditions}
    write_files({Path(path): json.dumps(content).encode()})
    return 0


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is written: it returns when the other end is closed
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
