"""Jobs: what to train, evaluate, calibrate or adapt, on which frames, with which resources."""

from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, field_validator, model_validator

from manybeam.spec.imaging import ID_PATTERN, Model

# Old names; files and records that use them are still read.
OLD_KINDS = {"rehearse": "calibrate", "iterate": "adapt"}


class Resources(Model):
    """Which share of the cluster a job may use."""

    workers: int = Field(
        2, ge=1, le=4096, description="worker processes; the members are divided among them"
    )
    cpus_per_worker: float = Field(1.0, gt=0, le=1024, description="CPU cores of each worker")
    gpus_per_worker: float = Field(0.0, ge=0, le=64, description="GPUs of each worker")
    retries: int = Field(3, ge=0, le=100, description="how often a lost worker is replaced")
    priority: int = Field(
        0,
        ge=-10,
        le=10,
        description="jobs with a higher number run first; recorded, not used yet",
    )
    group: str = Field(
        "", max_length=100, description="group that pays for the time; recorded, not used yet"
    )


class Measure(Model):
    """The conditions on which members are measured, and the match radius."""

    conditions: tuple[str, ...] = Field((), description="ids of conditions, or globs over ids")
    frames: tuple[str, ...] = Field((), description="URLs of labelled FrameSets")
    frames_per_condition: int = Field(
        8, ge=1, le=100_000, description="test frames simulated for each condition"
    )
    match_radius_pm: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="match radius; if left out, 0.35 of the neighbour distance [pm]",
    )


class Gates(Model):
    """Limits that a new version must keep before it may serve."""

    max_regression: float = Field(
        0.005,
        ge=0,
        le=1,
        description="largest loss of F1 on any condition, beyond noise",
    )
    max_ece_increase: float = Field(
        0.02,
        ge=0,
        le=1,
        description="largest rise of the calibration error (ECE), over the conditions that both "
        "versions were measured on",
    )


class Adapt(Model):
    """How members are adapted to unlabelled frames."""

    policy: str = Field(
        "",
        pattern=ID_PATTERN,
        description="policy in which the condition of the frames is inferred; required",
    )
    labels: Literal["twin", "pseudo", "both"] = Field(
        "twin",
        validation_alias=AliasChoices("labels", "teacher"),
        description="where labels come from: twin simulates labelled frames that resemble the new "
        "ones, pseudo uses atoms on which the members agree, both uses both",
    )
    steps: int = Field(
        100, ge=1, le=1_000_000, description="optimiser steps for each member and round"
    )
    rounds: int = Field(
        1, ge=1, le=100, description="largest number of rounds; no gain ends them earlier"
    )
    members: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (),
        description="indices of the members to adapt; if left out, selection chooses them",
    )
    frames: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="indices of the frames to adapt to; if left out, the first 16"
    )
    beside: bool = Field(
        default=False, description="add adapted members to the ensemble and keep their parents"
    )


class Calibrate(Model):
    """On which simulated frames the calibration set of a version is measured."""

    policies: tuple[Annotated[str, Field(pattern=ID_PATTERN)], ...] = Field(
        (),
        description="ids of policies from which conditions are drawn; if left out, the members' "
        "training policies and the broadest policy of their structure",
    )
    frame_count: int = Field(600, ge=200, le=100_000, description="frames simulated")


class Job(Model):
    """One piece of work, as a person writes it."""

    kind: Literal["train", "tune", "evaluate", "calibrate", "adapt"] = Field(
        description="what to do; the old names rehearse (calibrate) and iterate (adapt) are read"
    )
    name: str = Field(pattern=ID_PATTERN, description="name of the ensemble")
    recipe: str = Field("", pattern=ID_PATTERN, description="id of a recipe, for train and tune")
    ensemble: str = Field(
        "",
        pattern=r"^[a-z0-9][a-z0-9._-]*(@[a-z0-9]+)?$",
        description="version to start from, such as graphene@serving; for evaluate, calibrate "
        "and adapt",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of all random draws of this job")
    frames: tuple[str, ...] = Field(
        ("simulate:",),
        description="training frames: URLs of FrameSets, or simulate: for frames drawn from the "
        "policies; for adapt, the URL of one FrameSet of unlabelled frames",
    )
    adapt: Adapt = Field(default_factory=Adapt, description="how members are adapted; for adapt")
    calibrate: Calibrate = Field(
        default_factory=Calibrate,
        validation_alias=AliasChoices("calibrate", "rehearsal"),
        description="on which frames the version is calibrated; for calibrate",
    )
    measure: Measure = Field(default_factory=Measure, description="where the result is measured")
    resources: Resources = Field(default_factory=Resources, description="share of the cluster")
    gates: Gates = Field(default_factory=Gates, description="limits a new version must keep")
    alias: Literal["serving", "candidate"] = Field(
        "serving", description="alias of the new version; adapt makes candidates only"
    )

    @field_validator("kind", mode="before")
    @classmethod
    def _read_old_kind(cls, kind: Any) -> Any:
        return OLD_KINDS.get(kind, kind) if isinstance(kind, str) else kind

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        needed = {
            "train": {"recipe"},
            "tune": {"recipe"},
            "evaluate": {"ensemble"},
            "calibrate": {"ensemble"},
            "adapt": {"ensemble", "adapt.policy"},
        }[self.kind]
        values = {
            "recipe": self.recipe,
            "ensemble": self.ensemble,
            "adapt.policy": self.adapt.policy,
        }
        given = {name for name, value in values.items() if value}
        if missing := sorted(needed - given):
            raise ValueError(f"kind {self.kind} needs {' and '.join(missing)}; add it")
        if surplus := sorted(given - needed):
            raise ValueError(f"kind {self.kind} takes no {' and no '.join(surplus)}; remove it")
        if self.ensemble and self.ensemble.partition("@")[0] != self.name:
            raise ValueError(
                f"name {self.name!r} and ensemble {self.ensemble!r} are two ensembles; "
                "give the same name in both fields"
            )
        return self

    @model_validator(mode="after")
    def _adapts_to_one_set_and_makes_a_candidate(self) -> Self:
        if self.kind != "adapt":
            return self
        if len(self.frames) != 1 or self.frames[0] == "simulate:":
            raise ValueError("frames: kind adapt adapts to one FrameSet; give its URL")
        if "alias" in self.model_fields_set and self.alias != "candidate":
            raise ValueError("alias: an adapted version is only a candidate; remove alias")
        return self
