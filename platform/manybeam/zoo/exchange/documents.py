"""The manifest of a package, with all allowed fields."""

from datetime import datetime
from typing import Any, Literal

from pydantic import AliasChoices, Field

from manybeam.spec.imaging import Model
from manybeam.zoo.checks import LONGEST_URL


class FileEntry(Model):
    """A file of the package, by its path inside."""

    path: str = Field(max_length=400)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class MemberEntry(Model):
    """The two files of one member."""

    index: int = Field(ge=0, le=999_999)
    weights: FileEntry
    card: FileEntry


class FrameSetEntry(Model):
    """A FrameSet that members were trained on."""

    url: str = Field(max_length=LONGEST_URL)
    digest: str = Field(max_length=64)


class CalibrationSetEntry(FileEntry):
    """A calibration set, and the SHA-256 of the weights of each member it was measured with."""

    weights: dict[str, str] = Field(max_length=10_000)


class Manifest(Model):
    """The content and the origin of a package.

    In the file, `calibration_set` is called `rehearsal` and `signature` is called `seal`, as in
    packages of older versions, so that all versions read all packages.
    """

    format: Literal["manybeam-exchange-1"]
    ensemble: str = Field(max_length=100)
    version: int = Field(ge=0)
    digest: str = Field(max_length=64)
    created: datetime
    exported: datetime
    code_version: str = Field(max_length=100)
    parent: str = Field(max_length=400)
    job: dict[str, Any]
    failed: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    members: tuple[MemberEntry, ...] = Field(min_length=1, max_length=10_000)
    scores: FileEntry
    inputs: tuple[FrameSetEntry, ...] = Field((), max_length=1000)
    calibration_set: CalibrationSetEntry | None = Field(
        None,
        validation_alias=AliasChoices("rehearsal", "calibration_set"),
        serialization_alias="rehearsal",
    )
    original: FileEntry | None = None
    signature: str = Field(
        "",
        max_length=400,
        validation_alias=AliasChoices("seal", "signature"),
        serialization_alias="seal",
    )

    @property
    def files(self) -> list[FileEntry]:
        """All files that it names."""
        of_members = [file for one in self.members for file in (one.weights, one.card)]
        extras = [one for one in (self.calibration_set, self.original) if one is not None]
        return [*of_members, self.scores, *extras]

    @property
    def weights(self) -> dict[int, str]:
        """SHA-256 of the weights of each member, by index."""
        return {one.index: one.weights.sha256 for one in self.members}
