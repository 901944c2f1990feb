"""Whether a version may answer in reduced precision: its answers beside those in float32.

Axis letters: n frame, y row, x column.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from manybeam.errors import Corrupt
from manybeam.learn.analysis.calibration_set import SHAPE
from manybeam.learn.analysis.condition_inference import draw
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.inference.graphs import Graphs
from manybeam.learn.nets.inference.runtime import has_bf16
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.prediction import Prediction
from manybeam.learn.scoring.scores import Scores, match_frame, summarise
from manybeam.spec import Policy

KIND = "reduced-precision"  # of the attachment of a version
FRAMES = 24
LARGEST_CHANGE = 0.01  # of a pixel, in mean and in standard deviation
LARGEST_F1_CHANGE = 0.001
LARGEST_ECE_CHANGE = 0.002


@dataclass(frozen=True)
class PrecisionGate:
    """The largest changes of a version's answers in bfloat16, on simulated frames.

    Attributes:
        frames: their number.
        mean: of the mean in a pixel.
        std: of the standard deviation in a pixel.
        f1: of F1 over all frames.
        ece: of the expected calibration error over all frames.
    """

    frames: int
    mean: float
    std: float
    f1: float
    ece: float

    @property
    def is_passed(self) -> bool:
        """Whether the version may answer in bfloat16."""
        return (
            max(self.mean, self.std) <= LARGEST_CHANGE
            and self.f1 <= LARGEST_F1_CHANGE
            and self.ece <= LARGEST_ECE_CHANGE
        )

    def __str__(self) -> str:
        """Return the verdict and the figures, in words."""
        verdict = "may be used" if self.is_passed else "is refused"
        return (
            f"bfloat16 {verdict}: on {self.frames} simulated frames the mean changes by at most "
            f"{self.mean:.4f}, the spread by {self.std:.4f} (allowed {LARGEST_CHANGE:g}), F1 by "
            f"{self.f1:.4f} ({LARGEST_F1_CHANGE:g}), the calibration error by {self.ece:.4f} "
            f"({LARGEST_ECE_CHANGE:g})"
        )

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
    exact, reduced = Ensemble(members, graphs=graphs), Ensemble(members, graphs=graphs.reduced())
    if not reduced.is_reduced:
        return None
    pairs: list[tuple[Prediction, Prediction]] = []
    truths, sizes_pm = [], []
    for number in range(frame_count):
        rng, policy = np.random.default_rng((seed, number)), policies[number % len(policies)]
        shape = policy.scan.shape or SHAPE
        made = simulate(draw(policy, rng), 1, seed=int(rng.integers(2**31)), shape=shape)
        size_pm = float(made.pixel_size_pm[0])
        both = (one.predict(made.frames_nyx[0], size_pm) for one in (exact, reduced))
        pairs.append(tuple(both))  # type: ignore[arg-type]  # there are two
        truths.append(made.truth[0])
        sizes_pm.append(size_pm)
    before, after = (_scores(one, truths, sizes_pm) for one in zip(*pairs, strict=True))
    return PrecisionGate(
        frames=frame_count,
        mean=max(float(np.abs(one.mean_yx - two.mean_yx).max()) for one, two in pairs),
        std=max(float(np.abs(one.std_yx - two.std_yx).max()) for one, two in pairs),
        f1=abs(after.f1 - before.f1),
        ece=abs(after.ece - before.ece),
    )


def _scores(
    answers: Sequence[Prediction], truths: Sequence[np.ndarray], sizes_pm: Sequence[float]
) -> Scores:
    matched = [
        match_frame(answer.atoms, truth, size_pm, answer.shape)
        for answer, truth, size_pm in zip(answers, truths, sizes_pm, strict=True)
    ]
    return summarise(matched, [answer.atoms[:, 3] for answer in answers])
