"""Recipes: the network, its training, and the members of an ensemble."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from manybeam.spec.elements import as_atomic_number
from manybeam.spec.imaging import ID_PATTERN, Model


class Network(Model):
    """Architecture of one member."""

    name: str = Field(
        "unet",
        pattern=r"^[A-Za-z][A-Za-z0-9]{0,39}$",
        description="unet, bandpass, or the class name of a network of MONAI or AtomAI",
    )
    filters: int = Field(12, ge=2, le=256, description="feature maps of the first level")
    levels: int = Field(
        3, ge=1, le=6, description="levels of resolution; each has half of the one above"
    )
    classes: int = Field(1, ge=1, le=8, description="number of kinds of atom")
    dropout: float = Field(0.0, ge=0, le=0.9, description="share of features dropped in training")


class Training(Model):
    """Loss, optimiser and length of one member's training."""

    loss: Literal["bce", "focal", "dice", "bce+dice"] = Field("bce+dice", description="pixel loss")
    learning_rate: float = Field(3e-3, gt=0, le=1, description="peak of the one-cycle schedule")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="decoupled weight decay")
    steps: int = Field(400, ge=1, le=10_000_000, description="optimiser steps")
    batch: int = Field(16, ge=1, le=4096, description="tiles in one step")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="arithmetic of the forward pass; auto chooses by the type of CPU or GPU",
    )
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")


class TileSpec(Model):
    """How tiles, the input of a network, are made from frames."""

    tile_px: int = Field(96, ge=16, le=1024, description="edge of a tile [px]")
    pixel_size_pm: float = Field(
        16.0, gt=0, le=500, description="pixel size frames are rescaled to [pm]"
    )
    mask_radius_pm: float = Field(
        42.0, gt=0, le=1000, description="radius of the mask of an atom [pm]"
    )
    normalise: Literal["frame", "local", "range"] = Field(
        "frame",
        description="standardise by the frame's mean and deviation, by local ones, "
        "or scale from 0 (darkest) to 1 (brightest pixel)",
    )
    local_nm: float = Field(1.5, gt=0, le=100, description="window of local normalisation [nm]")
    elements: tuple[Annotated[int, BeforeValidator(as_atomic_number), Field(ge=1, le=118)], ...] = (
        Field(
            (),
            max_length=8,
            description="symbols or atomic numbers, one class each; if left out, one class for all "
            "atoms",
        )
    )
    frames_per_policy: int = Field(
        128, ge=1, le=1_000_000, description="frames simulated for each policy"
    )


class MemberPlan(Model):
    """One member to train: its seed, and the policy of its frames."""

    seed: int = Field(ge=0, le=2**31 - 1, description="seed of initialisation, order, augmentation")
    policy: str = Field(pattern=ID_PATTERN, description="id of a policy")
    network: Network | None = Field(
        None, description="network of this member; if left out, the network of the recipe"
    )


class Recipe(Model):
    """Everything that decides the result of a training, except the frames."""

    id: str = Field(pattern=ID_PATTERN, description="name, lower case, unique in the zoo")
    version: int = Field(1, ge=1)
    title: str = Field("", max_length=200)
    network: Network = Field(default_factory=Network)
    training: Training = Field(default_factory=Training)
    tiles: TileSpec = Field(default_factory=TileSpec)
    strategy: Literal["scratch", "baseline", "swag"] = Field(
        "scratch", description="how a member starts"
    )
    members: tuple[MemberPlan, ...] = Field(
        min_length=1, max_length=1000, description="members, in order"
    )

    @model_validator(mode="after")
    def _has_a_class_for_each_element(self) -> Self:
        needed = len(self.tiles.elements) or 1
        own = [member.network for member in self.members if member.network is not None]
        other = next((one for one in (self.network, *own) if one.classes != needed), None)
        if other is not None:
            raise ValueError(
                f"network.classes: {other.classes} classes and "
                f"{len(self.tiles.elements)} tiles.elements; give one element for each class, "
                "in the order of the classes"
            )
        if len(set(self.tiles.elements)) != len(self.tiles.elements):
            raise ValueError("tiles.elements: an element is given twice; give each element once")
        return self

    @model_validator(mode="after")
    def _has_no_twin_members(self) -> Self:
        seen = [(one.seed, one.policy, self.of(one).network) for one in self.members]
        twins = [one for one in seen if seen.count(one) > 1]
        if twins:
            raise ValueError(
                f"members: seed and policy {twins[0][:2]} are given twice; such members would be "
                "equal, so change a seed"
            )
        return self

    def of(self, member: MemberPlan) -> Self:
        """Return the recipe of one member; it differs if the member has a special network."""
        if member.network is None:
            return self
        return self.model_copy(update={"network": member.network, "members": (member,)})
