"""What is asked about a frame: who may answer, under which bound, and how closely."""

from dataclasses import dataclass

AUTO = "auto"  # any ensemble that serves


@dataclass(frozen=True)
class Question:
    """What is asked about a frame.

    Attributes:
        ref: who may answer: a REF, whose members then answer together, or `auto`: any ensemble
            that serves, with the members that selection chooses.
        members: indices of the members of REF that answer; all if left out.
        false_atoms: bound on the share of an answer's atoms that may be false; 0 for none.
        is_selecting: selection decides which members of REF answer; of `auto` it always does.
        is_raw: the members' own answer is wanted: no calibration, predicted F1 or drift. What
            members are measured by is this.
    """

    ref: str = AUTO
    members: tuple[int, ...] = ()
    false_atoms: float = 0.0
    is_selecting: bool = False
    is_raw: bool = False

    @property
    def is_auto(self) -> bool:
        """Whether selection decides who answers."""
        return self.ref == AUTO
