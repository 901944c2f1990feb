"""What a service says between two answers of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping


@dataclass(frozen=True)
class Event:
    """One event of the service.

    Attributes:
        kind: `switched` (other members answer), `drifted`, `swapped`, `budget`, or what a newer
            service says.
        frame_id: the frame from which it holds; may be empty.
        why: the reason, in words.
        at: when, as the service wrote it.
        facts: all that was said.
    """

    kind: str
    frame_id: str = ""
    why: str = ""
    at: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_head(cls, head: Mapping[str, Any]) -> Event:
        """Return the event of a message of the stream."""
        said = [str(head.get(name) or "") for name in ("kind", "frame_id", "why", "at")]
        kind, frame_id, why, at = said
        return cls(kind, frame_id, why, at, dict(head))
