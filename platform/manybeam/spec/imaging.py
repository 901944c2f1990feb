"""Imaging conditions: instrument settings and state, as numbers (Condition) or ranges (Policy).

Both have the same fields. A Condition describes how a frame was recorded: each value is a number
or unknown (None). A Policy describes how training frames are drawn: each value may also be a
range. Unknown is not a default: `data.simulation.simulate` replaces it by a typical value only if
it needs a number.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

ID_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,99}$"


class Model(BaseModel):
    """The base of all models of YAML files: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Range(Model):
    """A closed interval of values in a policy; written `[low, high]` in YAML."""

    low: float
    high: float

    @model_serializer
    def _as_pair(self) -> list[float]:
        return [self.low, self.high]


Quantity = float | Range | None


def quantity(low: float, high: float, unit: str, sentence: str) -> Any:
    """Return a field of one physical quantity; its default is unknown (None).

    Args:
        low: smallest value allowed, in `unit`.
        high: largest value allowed, in `unit`.
        unit: unit of the number, or "1" for a bare one.
        sentence: the description, for the JSON schema and the docs.
    """
    extra: dict[str, JsonValue] = {"unit": unit, "low": low, "high": high}
    return Field(default=None, description=f"{sentence} [{unit}]", json_schema_extra=extra)


# Unit of a field -> units that are written by mistake, with the factor to that of the field.
OTHER_UNITS: dict[str, tuple[tuple[str, float], ...]] = {
    "kV": (("V", 1e-3), ("MV", 1e3)),
    "pm": (("A", 1e2), ("nm", 1e3)),
    "nm": (("A", 0.1), ("pm", 1e-3), ("um", 1e3)),
    "um": (("mm", 1e3), ("nm", 1e-3)),
    "mrad": (("rad", 1e3),),
    "us": (("ms", 1e3), ("s", 1e6), ("ns", 1e-3)),
    "pA": (("nA", 1e3),),
    "e/A^2": (("e/nm^2", 1e-2),),
}


def other_units(value: float, low: float, high: float, unit: str) -> str:
    """Return what a value out of bounds would be in other units; "" if no unit explains it.

    Example:
        >>> other_units(60000, 20, 400, "kV")
        '; 60000 V would be 60 kV'
    """
    meant = [
        f"{value:g} {other} would be {value * factor:.6g} {unit}"
        for other, factor in OTHER_UNITS.get(unit, ())
        if low <= value * factor <= high
    ]
    return f"; {', '.join(meant)}" if meant else ""


class Group(Model):
    """A group of quantities; each is checked against the bounds of its field."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_in_bounds(cls, value: Any, info: ValidationInfo) -> Any:
        extra = cls.model_fields[info.field_name or ""].json_schema_extra
        if not isinstance(extra, dict) or "unit" not in extra or value is None:
            return value
        low, high, unit = float(str(extra["low"])), float(str(extra["high"])), extra["unit"]
        allowed = f"a number from {low:g} to {high:g} {unit}, or a range [low, high] of them"
        ends = list(value) if isinstance(value, (list, tuple)) else [value]
        if isinstance(value, Range):
            ends = [value.low, value.high]
        if any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in ends):
            raise ValueError(f"is not a bare number; give {allowed}")
        is_list = isinstance(value, (list, tuple))
        if (is_list and len(ends) != 2) or not all(low <= end <= high for end in ends):
            units = other_units(ends[0], low, high, str(unit)) if len(ends) == 1 else ""
            raise ValueError(f"is out of bounds; give {allowed}{units}")
        if len(ends) == 2 and ends[0] > ends[1]:
            raise ValueError(f"has the high end first; give {allowed}")
        return float(ends[0]) if len(ends) == 1 else Range(low=ends[0], high=ends[1])


class Sample(Group):
    """The sample: a structure of the simulator, or the name of a measured material."""

    structure: Literal[
        "graphene", "heavy_atoms", "mos2", "lsmo", "grain_boundary", "crystal", "unknown"
    ] = Field("unknown", description="structure the simulator draws")
    material: str = Field("", max_length=100, description="name in plain words")
    file: str | None = Field(
        None,
        min_length=1,
        max_length=500,
        description="structure file of a crystal, CIF or another",
    )
    file_sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{8,64}$", description="first digits of the digest of that file"
    )
    zone_axis: tuple[int, int, int] | None = Field(
        None, description="direction [u, v, w] of the crystal along which the beam looks"
    )
    element: str | None = Field(
        None, pattern=r"^[A-Z][a-z]?$", description="symbol of the element of a grain boundary"
    )
    thickness_nm: Quantity = quantity(0.1, 500, "nm", "thickness of a crystal along the beam")
    tilt_deg: Quantity = quantity(0, 90, "deg", "angle between the two grains of a boundary")
    vacancy_fraction: Quantity = quantity(0, 0.3, "1", "share of atoms missing")
    vanadium_fraction: Quantity = quantity(0, 0.3, "1", "share of Mo replaced by V")
    silicon_fraction: Quantity = quantity(0, 0.3, "1", "share of atoms replaced by Si")
    nitrogen_fraction: Quantity = quantity(0, 0.3, "1", "share of atoms replaced by N")
    hole_probability: Quantity = quantity(0, 1, "1", "chance that a frame holds a hole or edge")
    strain: Quantity = quantity(0, 0.1, "1", "standard deviation of the lattice strain")
    atoms_per_nm2: Quantity = quantity(0, 30, "1/nm^2", "heavy atoms on the support")
    atomic_number: Quantity = quantity(1, 98, "1", "atomic number of the heavy atoms")
    atom_width_pm: Quantity = quantity(
        0, 500, "pm", "full width of one atom beyond probe and source: motion, beam spread"
    )
    atom_motion_pm: Quantity = quantity(
        0, 300, "pm", "how far a heavy atom moves about while the beam passes over it"
    )
    gathered_share: Quantity = quantity(
        0, 1, "1", "share of heavy atoms with a neighbour at a distance of 0.25 to 0.7 nm"
    )
    specks_per_nm2: Quantity = quantity(
        0, 30, "1/nm^2", "fainter specks beside the heavy atoms, which are not in the truth"
    )
    least_visibility: Quantity = quantity(
        0, 20, "1", "signal over local scatter from which a heavy atom is in the truth"
    )
    signal_spread: Quantity = quantity(
        0, 1.5, "1", "standard deviation of the logarithm of a heavy atom's signal: depth, motion"
    )
    support_nm: Quantity = quantity(0, 500, "nm", "mean thickness of the amorphous support")
    support_relief: Quantity = quantity(0, 2, "1", "relative variation of that thickness")
    support_grain_nm: Quantity = quantity(0.05, 20, "nm", "length over which thickness varies")

    @field_validator("zone_axis")
    @classmethod
    def _is_a_direction(cls, value: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if value is not None and (not any(value) or max(map(abs, value)) > 20):
            raise ValueError("is no direction; give [u, v, w], not all 0, each from -20 to 20")
        return value

    @model_validator(mode="after")
    def _has_what_it_is_drawn_from(self) -> Self:
        if self.structure == "crystal" and self.file is None:
            raise ValueError("structure crystal needs file; give the path of a CIF")
        return self


class Optics(Group):
    """The probe: energy, aperture, aberrations and source."""

    beam_kv: Quantity = quantity(20, 400, "kV", "acceleration voltage")
    convergence_mrad: Quantity = quantity(1, 60, "mrad", "half-angle of the probe")
    defocus_nm: Quantity = quantity(-200, 200, "nm", "defocus, positive for underfocus")
    cs_um: Quantity = quantity(-3000, 3000, "um", "third-order spherical aberration")
    astigmatism_nm: Quantity = quantity(0, 50, "nm", "two-fold astigmatism")
    coma_nm: Quantity = quantity(0, 1000, "nm", "axial coma, C21")
    trefoil_nm: Quantity = quantity(0, 1000, "nm", "three-fold astigmatism")
    focal_spread_nm: Quantity = quantity(0, 50, "nm", "FWHM of the defocus spread")
    source_fwhm_pm: Quantity = quantity(0, 500, "pm", "FWHM of the source in the frame plane")
    beam_current_pa: Quantity = quantity(0.01, 10000, "pA", "probe current")


class Detector(Group):
    """Annular detector and its electronics."""

    detector_inner_mrad: Quantity = quantity(0, 500, "mrad", "inner collection angle")
    detector_outer_mrad: Quantity = quantity(1, 1000, "mrad", "outer collection angle")
    gain: Quantity = quantity(1e-9, 1e9, "1", "counts recorded per electron")
    offset: Quantity = quantity(-1e9, 1e9, "1", "counts recorded without beam")
    readout_e: Quantity = quantity(0, 100, "e", "standard deviation of the readout noise")
    afterglow_px: Quantity = quantity(0, 20, "px", "decay length of the scintillator along a row")
    row_gain: Quantity = quantity(0, 0.5, "1", "relative brightness change from row to row")
    gamma: Quantity = quantity(0.2, 5, "1", "exponent applied to the recorded signal")
    saturation: Quantity = quantity(0.05, 1, "1", "share of the signal range kept before clipping")

    @model_validator(mode="after")
    def _has_a_ring(self) -> Self:
        inner, outer = self.detector_inner_mrad, self.detector_outer_mrad
        if isinstance(inner, float) and isinstance(outer, float) and not inner < outer:
            raise ValueError(
                f"detector_inner_mrad {inner:g} is not below detector_outer_mrad {outer:g}"
            )
        return self


class Scan(Group):
    """Positions and times of the beam."""

    pixel_size_pm: Quantity = quantity(1, 500, "pm", "edge of one square pixel")
    shape: tuple[int, int] | None = Field(None, description="rows and columns of a frame [px]")
    dwell_us: Quantity = quantity(0.001, 1e6, "us", "dwell time per pixel")
    row_jitter_pm: Quantity = quantity(0, 500, "pm", "random shift of each row")
    flyback_pm: Quantity = quantity(0, 2000, "pm", "distortion at the start of a row")
    drift_pm_per_row: Quantity = quantity(-50, 50, "pm", "sample drift during one row")

    @field_validator("shape")
    @classmethod
    def _is_a_frame(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not all(1 <= side <= 65536 for side in value):
            raise ValueError("is out of bounds; give [rows, columns], each from 1 to 65536 px")
        return value


class State(Group):
    """Background and contamination, in units of the peak of one carbon atom."""

    background: Quantity = quantity(0, 1e4, "peak", "uniform background")
    contamination: Quantity = quantity(0, 1e4, "peak", "strength of smooth contamination")
    amorphous: Quantity = quantity(0, 5, "1/layer", "loose atoms, as a share of one layer")


class Imaging(Group):
    """The fields a Condition and a Policy share."""

    id: str = Field(pattern=ID_PATTERN, description="name, lower case, unique in the zoo")
    version: int = Field(1, ge=1, description="raised when the numbers change")
    title: str = Field("", max_length=200, description="one line in plain words")
    modality: str = Field("haadf", pattern=r"^[a-z0-9-]{1,40}$", description="kind of imaging")
    sample: Sample = Field(default_factory=Sample)
    optics: Optics = Field(default_factory=Optics)
    detector: Detector = Field(default_factory=Detector)
    scan: Scan = Field(default_factory=Scan)
    state: State = Field(default_factory=State)
    dose_e_per_a2: Quantity = quantity(1, 1e10, "e/A^2", "electrons per area")

    LOG_UNIFORM: ClassVar[frozenset[str]] = frozenset({"dose_e_per_a2", "contamination"})

    def quantities(self) -> Iterator[tuple[str, Quantity]]:
        """Yield (dotted path, value) of every quantity, unknown ones too."""
        yield "dose_e_per_a2", self.dose_e_per_a2
        for group_name in ("sample", "optics", "detector", "scan", "state"):
            group = getattr(self, group_name)
            for name, field in type(group).model_fields.items():
                if isinstance(field.json_schema_extra, dict):
                    yield f"{group_name}.{name}", getattr(group, name)

    @property
    def digest(self) -> str:
        """SHA-256 of the physical content, 32 hex digits; id and title are not included."""
        content = self.model_dump(
            mode="json", exclude_none=True, exclude={"id", "title", "version", "origin"}
        )
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class Condition(Imaging):
    """How frames were recorded or simulated; every value is a number or unknown."""

    origin: Literal["simulated", "measured", "inferred"] = Field(
        "simulated", description="source of the numbers"
    )

    @model_validator(mode="after")
    def _holds_no_range(self) -> Self:
        ranges = [path for path, value in self.quantities() if isinstance(value, Range)]
        if ranges:
            raise ValueError(
                f"{', '.join(ranges)}: a range where a condition needs one number; "
                "give a number, or write a policy"
            )
        return self


class Policy(Imaging):
    """How training frames of a member are drawn; any value may be a range."""


@cache
def quantity_bounds() -> Mapping[str, tuple[float, float, str]]:
    """Return the lowest and highest value and the unit of each quantity, by its dotted path."""
    found = {}
    groups = {name: info.annotation for name, info in Condition.model_fields.items()}
    for group, kind in {"": Condition, **groups}.items():
        for name, field in getattr(kind, "model_fields", {}).items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and "unit" in extra:
                limits = (float(str(extra["low"])), float(str(extra["high"])), str(extra["unit"]))
                found[f"{group}.{name}" if group else name] = limits
    return found
