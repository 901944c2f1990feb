"""The settings of a session, as an instrument sends them."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from manybeam.errors import InvalidInput, MalformedRequest
from manybeam.serve.query import MAX_DEADLINE_MS

SELECT_EVERY = 100  # frames; conditions that drift slowly are noticed at the latest then
MAX_BODY = 64 * 2**10  # bytes


class SessionSettings(BaseModel):
    """The settings of a session; all have a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    policy: Literal["auto", "pinned"] = Field(
        "auto",
        description="auto: selection chooses version and members, and again when the condition "
        "moved. pinned: `ref` and `members` answer until the session is changed.",
    )
    ref: str = Field(
        "auto",
        description="REF that may answer, or auto for any that serves. Pinned, it is kept as the "
        "version that it means when the session is set.",
        max_length=200,
    )
    members: list[Annotated[int, Field(ge=0, le=9999)]] = Field(
        default_factory=list,
        description="Members that answer, if pinned; all of `ref` if left out.",
        max_length=256,
    )
    budget_ms: int | None = Field(
        None,
        ge=1,
        le=MAX_DEADLINE_MS,
        description="When an answer should be ready [ms]. Members are left out to keep it; an "
        "answer that is late all the same is given and counted.",
    )
    pixel_size_pm: float | None = Field(
        None, ge=1, le=500, description="Edge of a pixel of all frames [pm]."
    )
    condition: str = Field("", description="Id of the condition of the recording.", max_length=200)
    false_atoms: float = Field(
        0.0, ge=0, lt=1, description="Bound on the share of false atoms; 0 for none."
    )
    select_every: int = Field(
        SELECT_EVERY,
        ge=1,
        le=1_000_000,
        description="Frames after which members are selected anew although nothing moved.",
    )
    order: Literal["all", "newest"] = Field(
        "all",
        description="newest: a frame that still waits is refused when the next one arrives.",
    )

    keep_doubtful: int = Field(
        0,
        ge=0,
        le=500,
        description="Doubtful frames of the session that may be kept for adaptation; 0 keeps none.",
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.policy == "pinned" and self.ref == "auto":
            raise ValueError("ref: a pinned session needs the REF of a version")
        if self.policy == "auto" and self.members:
            raise ValueError("members: under auto, selection chooses them; use policy 'pinned'")
        if len(set(self.members)) < len(self.members):
            raise ValueError("members: each may be named once")
        return self

    @property
    def more(self) -> dict[str, Any]:
        """The settings that have no column of their own."""
        return self.model_dump(include=set(MORE))


# What a session says besides its settings: whoever changes one may send all of it back.
FACTS = frozenset(
    {
        "id",
        "instrument",
        "revision",
        "started",
        "ended",
        "counts",
        "selection_ms_per_frame",
        "now",
        "watch",
        "events",
        "history",
    }
)
MORE = ("pixel_size_pm", "condition", "false_atoms", "select_every", "order", "keep_doubtful")


def read_settings(body: bytes) -> SessionSettings:
    """Return the settings of a body; nothing means the defaults.

    Raises:
        MalformedRequest: it is no JSON object.
        InvalidInput: a setting is unknown or not allowed; all faults are named.
    """
    try:
        content = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:  # the second, if it is nested too deep
        raise MalformedRequest("the body is no JSON", str(error), _EXAMPLE) from error
    if not isinstance(content, dict):
        raise MalformedRequest("the body is no JSON object", "", _EXAMPLE)
    try:
        given = {name: value for name, value in content.items() if name not in FACTS}
        return SessionSettings.model_validate(given)
    except ValidationError as error:
        faults = [
            ": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"])))
            for one in error.errors()
        ]
        names = ", ".join(SessionSettings.model_fields)
        raise InvalidInput("; ".join(faults), f"settings: {names}", _EXAMPLE) from error


_EXAMPLE = 'send {"policy": "auto", "budget_ms": 150}'
