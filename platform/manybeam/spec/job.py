"""Jobs: what to train, evaluate or adapt, on which frames, with which resources."""

from typing import Literal

from pydantic import Field

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
        description="largest loss of F1 on any condition; recorded only for now",
    )


class Job(Model):
    """One piece of work, as a person writes it."""

    kind: Literal["train", "tune", "evaluate", "iterate"]
    name: str = Field(pattern=ID_PATTERN, description="name of the ensemble")
    recipe: str = Field(pattern=ID_PATTERN, description="id of a recipe")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of everything drawn for this job")
    frames: tuple[str, ...] = Field(
        ("simulate:",),
        description="training frames: URLs of FrameSets, or simulate: for the policies'",
    )
    measure: Measure = Field(default_factory=Measure)
    resources: Resources = Field(default_factory=Resources)
    gates: Gates = Field(default_factory=Gates)
    alias: Literal["serving", "candidate"] = Field(
        "serving", description="alias given to the version made"
    )
