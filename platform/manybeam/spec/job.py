"""Jobs: what to train, evaluate or adapt, on which frames, with which resources."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from manybeam.spec.imaging import ID_PATTERN, Model


class Resources(Model):
    """What a job may take of the cluster."""

    workers: int = Field(
        2, ge=1, le=4096, description="worker processes the members are shared over"
    )
    cpus_per_worker: float = Field(1.0, gt=0, le=1024, description="CPU cores of each worker")
    gpus_per_worker: float = Field(0.0, ge=0, le=64, description="GPUs of each worker")
    retries: int = Field(3, ge=0, le=100, description="times a lost worker is replaced")
    priority: int = Field(
        0,
        ge=-10,
        le=10,
        description="higher runs first, once jobs are queued; recorded only for now",
    )
    group: str = Field(
        "", max_length=100, description="group the time is charged to; recorded only for now"
    )


class Measure(Model):
    """On which conditions members are measured, and how long the match radius is."""

    conditions: tuple[str, ...] = Field((), description="ids of conditions, or globs over ids")
    frames: tuple[str, ...] = Field((), description="URLs of labelled FrameSets")
    frames_per_condition: int = Field(
        8, ge=1, le=100_000, description="test frames simulated for each"
    )
    match_radius_pm: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="match radius; 0.35 of the neighbour distance if left out [pm]",
    )


class Gates(Model):
    """What a new version must show before it may serve."""

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
        description="largest rise of the calibration error, over the conditions both know",
    )


class Adapt(Model):
    """How members are adapted to unlabelled frames."""

    policy: str = Field(
        "", pattern=ID_PATTERN, description="policy the frames' condition is sought in; needed"
    )
    teacher: Literal["twin", "pseudo", "both"] = Field(
        "twin",
        description="who labels: simulated twins of the frames, the members' agreement, or both",
    )
    steps: int = Field(
        100, ge=1, le=1_000_000, description="optimiser steps for each member and round"
    )
    rounds: int = Field(1, ge=1, le=100, description="most rounds; they end with the gain")
    members: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="indices of the members to adapt; left out, those that selection chooses"
    )
    frames: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="indices of the frames to adapt to; left out, the first 16"
    )
    beside: bool = Field(
        default=False, description="add adapted members to the ensemble and keep their parents"
    )


class Rehearsal(Model):
    """Under which conditions an ensemble is rehearsed, for selection to learn from."""

    policies: tuple[Annotated[str, Field(pattern=ID_PATTERN)], ...] = Field(
        (),
        description="ids of policies conditions are drawn from; left out, those the members were "
        "trained under and the broadest of their structure",
    )
    frame_count: int = Field(600, ge=200, le=100_000, description="frames simulated")


class Job(Model):
    """One piece of work, as a person writes it."""

    kind: Literal["train", "tune", "evaluate", "rehearse", "iterate"]
    name: str = Field(pattern=ID_PATTERN, description="name of the ensemble")
    recipe: str = Field("", pattern=ID_PATTERN, description="id of a recipe, for train and tune")
    ensemble: str = Field(
        "",
        pattern=r"^[a-z0-9][a-z0-9._-]*(@[a-z0-9]+)?$",
        description="version to start from, as graphene@serving; for all kinds but train and tune",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of everything drawn for this job")
    frames: tuple[str, ...] = Field(
        ("simulate:",),
        description="training frames: URLs of FrameSets, or simulate: for the policies'; for "
        "iterate the one FrameSet of unlabelled frames",
    )
    adapt: Adapt = Field(default_factory=Adapt, description="for iterate: how members are adapted")
    rehearsal: Rehearsal = Field(default_factory=Rehearsal)
    measure: Measure = Field(default_factory=Measure)
    resources: Resources = Field(default_factory=Resources)
    gates: Gates = Field(default_factory=Gates)
    alias: Literal["serving", "candidate"] = Field(
        "serving", description="alias given to the version made; iterate makes only candidates"
    )

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        needed = {
            "train": {"recipe"},
            "tune": {"recipe"},
            "evaluate": {"ensemble"},
            "rehearse": {"ensemble"},
            "iterate": {"ensemble", "adapt.policy"},
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
            raise ValueError(f"kind {self.kind} takes no {' and no '.join(surplus)}; leave it out")
        if self.ensemble and self.ensemble.partition("@")[0] != self.name:
            raise ValueError(
                f"name {self.name!r} and ensemble {self.ensemble!r} are two ensembles; "
                "a version stays with its own name"
            )
        return self

    @model_validator(mode="after")
    def _adapts_to_one_set_and_makes_a_candidate(self) -> Self:
        if self.kind != "iterate":
            return self
        if len(self.frames) != 1 or self.frames[0] == "simulate:":
            raise ValueError("frames: kind iterate adapts to one FrameSet; give its URL")
        if "alias" in self.model_fields_set and self.alias != "candidate":
            raise ValueError("alias: an adapted version is only a candidate; leave alias out")
        return self
