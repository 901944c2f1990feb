"""Settings that scanning microscopes write as text: in a file beside the frame, or in a tag.

FRAME.txt is of JEOL or Hitachi, FRAME.hdr of Tescan. What is none of them is left alone.
"""

import re
from pathlib import Path

from manybeam.data.io.formats import Raw, length_pm
from manybeam.data.io.units import measure

MOST_BYTES = 200_000
MOST_CHARS = 200  # of a value
# Name of the voltage -> its unit where the text has none.
_VOLTAGES = {"CM_ACCEL_VOLT": "kV", "AcceleratingVoltage": "V", "HV": "V"}


def add_text_beside(raw: Raw, path: Path) -> None:
    """Add the settings of a text file beside a frame, if a microscope wrote it."""
    suffix = path.suffix.lstrip(".")
    for name in (f"{path.stem}.txt", f"{path.stem}.hdr", f"{path.stem}-{suffix}.hdr"):
        beside = path.with_name(name)
        try:
            if not beside.is_file() or beside.stat().st_size > MOST_BYTES:
                continue
            content = beside.read_bytes()
        except OSError as error:  # the frame is whole without it
            raw.notes.append(f"{name} was ignored: {(error.strerror or str(error)).lower()}")
            continue
        size = add_text(raw, _decoded(content), name)
        if size:
            raw.implied[name] = size


def add_text(raw: Raw, text: str, source: str) -> float | None:
    """Add the voltage that a text states, and return the pixel size in pm; None if it has none."""
    found = dict(map(_entry, text.splitlines()))
    size = _jeol_pm(found) or _hitachi_pm(found) or _tescan_pm(found)
    if size is None:
        return None
    stated = re.findall(r"\d+", found.get("CM_FULL_SIZE") or found.get("DataSize") or "")
    columns = raw.array.shape[-1] if raw.array.ndim >= 2 else 0
    if stated and columns and int(stated[0]) != columns:
        raw.notes.append(
            f"{source} is of a frame of {stated[0]} columns, not {columns}: its pixel size and "
            "voltage were not taken"
        )
        return None
    for name, unit in _VOLTAGES.items():
        voltage = measure(found.get(name, "").replace("Volt", "V"), unit, "kV")
        if voltage:
            raw.values.setdefault("optics.beam_kv", voltage)
    return size


def _entry(line: str) -> tuple[str, str]:
    """Return name and value of a line: NAME=VALUE, or $NAME VALUE; a unit may be in brackets."""
    line = line.strip().lstrip("$")
    name, _, value = line.partition("=" if "=" in line else " ")
    return name.strip(), re.sub(r"[()]", "", value.strip()[:MOST_CHARS])


def _jeol_pm(found: dict[str, str]) -> float | None:
    """Return the length of the scale bar by its pixels: "100nm" of 120."""
    bar = measure(found.get("SM_MICRON_BAR", ""), "px", "px")
    marker = measure(found.get("SM_MICRON_MARKER", ""), "", "pm")
    return marker / bar if bar and marker else None


def _hitachi_pm(found: dict[str, str]) -> float | None:
    """Return the pixel size, which is in nm where its unit is left out."""
    return measure(found.get("PixelSize", ""), "nm", "pm") if "DataSize" in found else None


def _tescan_pm(found: dict[str, str]) -> float | None:
    """Return the pixel size, which is in m; both edges must be equal."""
    edges = [length_pm(found.get(f"PixelSize{axis}"), "m") for axis in "XY"]
    return edges[0] if edges[0] and edges[0] == edges[1] else None


def _decoded(content: bytes) -> str:
    is_wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    return content.decode("utf-16" if is_wide else "latin-1", "replace")
