"""Whether a version may answer in reduced precision: its answers beside those in float32.

Axis letters: n frame, y row, x column.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from manybeam.errors import Corrupt
from manybeam.learn.analysis.calibration_set import SHAPE
from manybeam.learn.analysis.condition_inference import draw
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.inference.graphs import Graphs
from manybeam.learn.nets.inference.runtime import has_bf16
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.prediction import Prediction
from manybeam.learn.scoring.scores import MatchedFrame, Scores, f1_of, match_frame, summarise
from manybeam.spec import Policy

KIND = "reduced-precision"  # of the attachment of a version
FRAMES = 24
LARGEST_CHANGE = 0.01  # of a pixel, in mean and in standard deviation
LARGEST_F1_CHANGE = 0.002
LARGEST_ECE_CHANGE = 0.002


@dataclass(frozen=True)
class PrecisionGate:
    """The largest changes of a version's answers in bfloat16, on simulated frames.

    Attributes:
        frames: their number; 0 if the machine of the last calibration could not measure it.
        mean: of the mean of all members in a pixel.
        std: of their standard deviation in a pixel.
        f1: of F1 over all frames, of all members together and of each alone.
        ece: of the expected calibration error of all members together.
    """

    frames: int
    mean: float
    std: float
    f1: float
    ece: float

    @property
    def is_passed(self) -> bool:
        """Whether the version may answer in bfloat16."""
        return self.frames > 0 and (
            max(self.mean, self.std) <= LARGEST_CHANGE
            and self.f1 <= LARGEST_F1_CHANGE
            and self.ece <= LARGEST_ECE_CHANGE
        )

    def __str__(self) -> str:
        """Return the verdict and the figures, in words."""
        if not self.frames:
            return "bfloat16 is refused: this machine cannot measure what it changes"
        verdict = "may be used" if self.is_passed else "is refused"
        return (
            f"bfloat16 {verdict}: on {self.frames} simulated frames the mean changes by at most "
            f"{self.mean:.4f}, the spread by {self.std:.4f} (allowed {LARGEST_CHANGE:g}), F1 by "
            f"{self.f1:.4f} ({LARGEST_F1_CHANGE:g}), the calibration error by {self.ece:.4f} "
            f"({LARGEST_ECE_CHANGE:g})"
        )

    @classmethod
    def unmeasured(cls) -> "PrecisionGate":
        """Return one that refuses, because it was not measured."""
        return cls(frames=0, mean=1.0, std=1.0, f1=1.0, ece=1.0)

    def to_bytes(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "PrecisionGate":
        """Return what `to_bytes` wrote; raises Corrupt for anything else."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise Corrupt(
                "the measurement of reduced precision cannot be read",
                str(error),
                "manybeam calibrate REF again",
            ) from error


def measure_precision(
    members: Sequence[Member],
    policies: Sequence[Policy],
    graphs: Graphs,
    *,
    seed: int,
    frame_count: int = FRAMES,
) -> PrecisionGate | None:
    """Return the changes by bfloat16, on frames drawn from policies.

    Args:
        members: of the version.
        policies: those of its calibration set.
        graphs: compiled networks of this machine.
        seed: of the frames; it must not be that of frames that anything was trained on.
        frame_count: how many.

    Returns:
        None if this CPU computes nothing in bfloat16, or the networks cannot be compiled.
    """
    from manybeam.data.simulation.simulate import simulate  # needs torch, reading a gate does not

    if not has_bf16():
        return None
    both = [Ensemble(members, device="cpu", graphs=one) for one in (graphs, graphs.reduced())]
    if not both[1].is_reduced:
        return None
    mean = std = 0.0
    found = [_Found(), _Found()]
    for number in range(frame_count):
        rng, policy = np.random.default_rng((seed, number)), policies[number % len(policies)]
        shape = policy.scan.shape or SHAPE
        made = simulate(draw(policy, rng), 1, seed=int(rng.integers(2**31)), shape=shape)
        size_pm = float(made.pixel_size_pm[0])
        exact, reduced = (one.predict(made.frames_nyx[0], size_pm) for one in both)
        mean = max(mean, float(np.abs(exact.mean_yx - reduced.mean_yx).max()))
        std = max(std, float(np.abs(exact.std_yx - reduced.std_yx).max()))
        for kept, prediction in zip(found, (exact, reduced), strict=True):
            kept.add(prediction, made.truth[0], size_pm)
    (before, f1_before), (after, f1_after) = (one.scores() for one in found)
    return PrecisionGate(
        frames=frame_count,
        mean=mean,
        std=std,
        f1=float(np.abs(np.subtract(f1_after, f1_before)).max()),
        ece=abs(after.ece - before.ece),
    )


@dataclass
class _Found:
    """The atoms of several frames, matched with the truth."""

    matched: list[MatchedFrame] = field(default_factory=list)
    probability: list[np.ndarray] = field(default_factory=list)
    counts: list[list[tuple[int, int, int]]] = field(default_factory=list)

    def add(self, prediction: Prediction, truth: np.ndarray, size_pm: float) -> None:
        """Add one frame."""
        shape = prediction.shape
        self.matched.append(match_frame(prediction.atoms, truth, size_pm, shape))
        self.probability.append(prediction.atoms[:, 3])
        alone = [match_frame(atoms, truth, size_pm, shape) for atoms in prediction.member_atoms]
        self.counts.append([one.counts for one in alone])

    def scores(self) -> tuple[Scores, list[float]]:
        """Return the scores of all members together, and their F1 and that of each one."""
        together = summarise(self.matched, self.probability)
        counts_m3 = np.array(self.counts).sum(axis=0)
        return together, [together.f1, *(float(f1_of(one)) for one in counts_m3)]
