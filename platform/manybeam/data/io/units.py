"""Numbers with the unit of a file, converted to ours.

The meaning of a letter depends on the quantity: A is an ångström for a length and an ampere for a
current. A unit that does not belong to the quantity is a fault; it is not guessed.
"""

import math
import re
import unicodedata
from collections.abc import Mapping

_LENGTH_PM = {
    "m": 1e12, "cm": 1e10, "inch": 2.54e10, "mm": 1e9, "um": 1e6, "micron": 1e6, "nm": 1e3,
    "a": 1e2, "angstrom": 1e2, "pm": 1.0,
}  # fmt: skip
_OF: Mapping[str, Mapping[str, float]] = {
    "kV": {"v": 1e-3, "kv": 1.0, "mv": 1e3, "ev": 1e-3, "kev": 1.0},
    "mrad": {"rad": 1e3, "mrad": 1.0, "urad": 1e-3, "deg": 17.453292519943295},
    "pA": {"a": 1e12, "ma": 1e9, "ua": 1e6, "na": 1e3, "pa": 1.0, "fa": 1e-3},
    "us": {"s": 1e6, "sec": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3, "min": 6e7},
    "e/A^2": {"e/a^2": 1.0, "e/nm^2": 1e-2, "e/um^2": 1e-8, "e/m^2": 1e-20},
    "pm": _LENGTH_PM,
    "nm": {name: size / 1e3 for name, size in _LENGTH_PM.items()},
    "um": {name: size / 1e6 for name, size in _LENGTH_PM.items()},
    "e": {"e": 1.0, "electrons": 1.0},
    "px": {"px": 1.0, "pixel": 1.0, "pixels": 1.0},
    "1": {"1": 1.0},
}
FIELD_OF_VIEW = "field of view"  # not a quantity of a condition, but in files
# Quantities in files -> their unit in a condition.
OURS = {
    "optics.beam_kv": "kV", "optics.convergence_mrad": "mrad", "optics.beam_current_pa": "pA",
    "optics.defocus_nm": "nm", "optics.cs_um": "um", "optics.astigmatism_nm": "nm",
    "optics.coma_nm": "nm", "optics.trefoil_nm": "nm", "detector.detector_inner_mrad": "mrad",
    "detector.detector_outer_mrad": "mrad", "scan.dwell_us": "us", "dose_e_per_a2": "e/A^2",
    "scan.pixel_size_pm": "pm", FIELD_OF_VIEW: "pm", FIELD_OF_VIEW + " y": "pm",
}  # fmt: skip
# Names of units that programs write in full: nanometer, electron volts, milliradians.
_PREFIXES = {"pico": "p", "nano": "n", "micro": "u", "milli": "m", "centi": "c", "kilo": "k"}
_WORDS = {"meter": "m", "metre": "m", "electronvolt": "ev", "radian": "rad", "second": "s"}
_IN_FULL = re.compile(f"({'|'.join(_PREFIXES)})?({'|'.join(_WORDS)})s?")
_OTHER_NAMES = {
    "angstroms": "angstrom", "angström": "angstrom", "microns": "micron", "in": "inch",
    "inches": "inch", "degrees": "deg", "degree": "deg", "°": "deg",
}  # fmt: skip
_MEASURE = re.compile(r"\s*([-+]?[0-9][0-9.]*(?:[eE][-+]?[0-9]+)?)\s*(.*?)\s*")


def as_number(value: object) -> float | None:
    """Return a value of a file as a finite number; None if it is not a number."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def plain_unit(unit: str) -> str:
    """Return a unit in the form of our tables.

    Example:
        >>> plain_unit("[_n_m]"), plain_unit("Å"), plain_unit("e-/Å²"), plain_unit("nm per pixel")
        ('nm', 'a', 'e/a^2', 'nm')
    """
    name = re.sub(r"[\[\](){}_\s\x00]", "", unicodedata.normalize("NFC", unit)).lower()
    name = re.sub(r"(?<=[a-zµμåö])(/|per)(px|pix|pixel)s?\.?$", "", name)
    name = re.sub(r"(?<=ev)(/|per)(ch|chan|channel)s?$", "", name)
    name = name.replace("\\u00b5", "u").replace("µ", "u").replace("μ", "u").replace("å", "a")
    name = name.replace("âu", "u").replace("−", "-")  # UTF-8 read as Latin-1; a minus
    name = name.replace("e-/", "e/").replace("²", "^2").replace("**2", "^2")
    name = re.sub(r"(?<=[am])2$", "^2", name)
    if match := _IN_FULL.fullmatch(name):
        return _PREFIXES.get(match[1], "") + _WORDS[match[2]]
    return _OTHER_NAMES.get(name, name)


def factor(unit: str, ours: str) -> float | None:
    """Return the factor from `unit` to our unit; None if it does not belong to the quantity.

    Example:
        >>> factor("A", "pm"), factor("A", "pA"), factor("s", "kV")
        (100.0, 1000000000000.0, None)
    """
    return _OF[ours].get(plain_unit(unit))


def measure(value: object, unit: str, ours: str) -> float | None:
    """Return a number in our unit; None if the file does not give number or unit.

    Args:
        value: a number, or a number with its unit in one text: "60 kV".
        unit: the unit if the value is bare.
        ours: one of kV, mrad, pA, us, e/A^2, pm, nm, um, e, px, 1.

    Example:
        >>> measure("60 kV", "", "kV"), measure(6e4, "V", "kV"), measure("0.03", "nA", "pA")
        (60.0, 60.0, 30.0)
    """
    match = _MEASURE.fullmatch(str(value))
    if match is None:
        return None
    number, scale = as_number(match[1]), factor(match[2] or unit, ours)
    return None if number is None or scale is None else number * scale
