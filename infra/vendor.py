"""Updates the vendored files of the pages: `vendor.json` lists their packages on npm.

    python infra/vendor.py            fetch the versions in the list, check them, write the files
    python infra/vendor.py --latest   use the newest versions, and write a new list

Pages load nothing from another origin, so these files are in the repository. A file whose SHA-256
differs from the list is not written, except with `--latest`.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "platform" / "manybeam" / "web" / "static" / "vendor"
LIST = FOLDER / "vendor.json"


def main() -> int:
    """Update all files; return 1 if one differs from the list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--latest", action="store_true", help="use the newest versions")
    is_latest = parser.parse_args().latest
    entries: list[dict[str, Any]] = json.loads(LIST.read_text())
    packed: dict[str, tuple[str, dict[str, bytes]]] = {}
    wrong = []
    for entry in entries:
        name = entry["name"]
        if name not in packed:
            packed[name] = unpack(name, "latest" if is_latest else entry["version"])
        version, files = packed[name]
        content = files[entry["source"]]
        sha256 = hashlib.sha256(content).hexdigest()
        if is_latest:
            entry |= {"version": version, "sha256": sha256}
        elif sha256 != entry["sha256"]:
            wrong.append(f"{entry['file']}: {name}@{version} holds {sha256}, not {entry['sha256']}")
            continue
        (FOLDER / entry["file"]).write_bytes(content)
        print(f"{entry['file']}: {name} {version}", file=sys.stderr)
    if is_latest:
        LIST.write_text(json.dumps(entries, indent=1) + "\n")
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


def unpack(name: str, version: str) -> tuple[str, dict[str, bytes]]:
    """Return the version of a package and its files by path, from `npm pack`."""
    with tempfile.TemporaryDirectory() as folder:
        asked = ["npm", "pack", "--silent", "--json", f"{name}@{version}"]
        done = subprocess.run(asked, cwd=folder, capture_output=True, text=True, check=True)
        described = json.loads(done.stdout)
        packed = next(iter(described.values())) if isinstance(described, dict) else described[0]
        archive = next(Path(folder).glob("*.tgz"))
        with tarfile.open(archive) as tar:
            members = [one for one in tar.getmembers() if one.isfile()]
            found = {one.name.removeprefix("package/"): tar.extractfile(one) for one in members}
            files = {path: stream.read() for path, stream in found.items() if stream}
    return packed["version"], files


if __name__ == "__main__":
    raise SystemExit(main())
