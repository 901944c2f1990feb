"""The acceptance gate of a round: a member's scores before and after, and whether it passes.

A member is replaced only if three things hold: its atoms fit the new frames better than before,
they fit the frames better than noise, and its F1 on held-out truth did not fall. The gate is
necessary because fine-tuning can destroy a network.
Axis letters: n frame, y row, x column.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import fft

from manybeam.data.simulation.simulate import Simulated, simulate
from manybeam.learn.analysis.condition_inference import Inferred
from manybeam.learn.analysis.fitness import LATTICES, Lattice, combine, fitness
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.member import Member
from manybeam.learn.scoring.scores import score_frames
from manybeam.spec import Policy

USELESS_F1 = 0.5  # below this, the member is of no use on a condition and cannot get worse there
LEAST_GAIN = 0.002  # rise of the label-free score below which nothing was gained
NOISE_LEAD = 0.05  # by which atoms must fit the frames better than noise of the same spectrum
NOISE_FRAMES = 4  # frames that noise is made after
TWIN_TESTS = 6  # labelled twins that a member is scored on
SHAPE = (128, 128)  # of frames simulated for scoring and for centring


@dataclass(frozen=True)
class Assessment:
    """The scores of one member before or after a step.

    Attributes:
        fitness: label-free score on the new frames, 0 to 1.
        f1: F1 on held-out truth, mean over its conditions.
        twin_f1: F1 on labelled twins of the new frames; None without an inferred condition.
        held: on each held-out condition: F1, and its standard error by the number of atoms.
        on_noise: label-free score on noise with the new frames' spectrum, 0 to 1: what a member
            that sees atoms everywhere would get.
    """

    fitness: float
    f1: float
    twin_f1: float | None = None
    held: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    on_noise: float = 0.0


class AcceptanceGate:
    """The scores that a member has to keep or raise in one round of adaptation.

    They are computed on the same frames before and after fine-tuning.

    Args:
        frames_nyx: the new frames.
        pixel_size_pm: edge of their pixels, in pm, or None.
        held_out: frames with truth that no member was trained on, by condition.
        imaging: policy the condition was inferred in; its structure gives the lattice.
        inferred: the condition inferred, if it was.
        seed: of what is simulated here.
        among: the ensemble that the member is added to. F1 on held-out truth is then that of the
            whole ensemble, because the new member will never answer alone.
    """

    def __init__(
        self,
        frames_nyx: np.ndarray,
        pixel_size_pm: float | None,
        held_out: Mapping[str, Simulated],
        imaging: Policy,
        inferred: Inferred | None,
        seed: int,
        among: Ensemble | None = None,
    ) -> None:
        self.frames_nyx, self.pixel_size_pm = frames_nyx, pixel_size_pm
        self.held_out, self.imaging, self.inferred, self.seed = held_out, imaging, inferred, seed
        self.among = among
        self.lattice: Lattice | None = LATTICES.get(imaging.sample.structure)
        self.twins = (
            simulate(inferred.policy, TWIN_TESTS, seed=seed + 2, shape=SHAPE) if inferred else None
        )
        self.noise_nyx = noise_like(frames_nyx[:NOISE_FRAMES], seed)
        if among is not None:
            self._without = self.with_held(Assessment(math.nan, math.nan))

    def before(self, parent: Member) -> Assessment:
        """Return the scores of a member before the first round."""
        assessment = self.on_new_frames(parent)
        if self.among is None:
            return self.with_held(assessment, parent)
        return replace(assessment, f1=self._without.f1, held=self._without.held)

    def on_new_frames(self, member: Member) -> Assessment:
        """Return the scores of a member on the new frames; those on held-out truth are NaN."""
        alone = Ensemble([member])
        size, lattice = self.pixel_size_pm, self.lattice
        return Assessment(
            fitness=label_free_score(alone, self.frames_nyx, size, lattice),
            f1=math.nan,
            twin_f1=f1_on(alone, self.twins) if self.twins else None,
            on_noise=label_free_score(alone, self.noise_nyx, size, lattice),
        )

    def with_held(self, assessment: Assessment, *members: Member) -> Assessment:
        """Return an assessment with F1 on held-out truth added.

        F1 is that of the member, or of `among` and the new members together.
        """
        scored = list(members)
        if self.among is not None:
            free = max(self.among.indices) + 1
            named = [replace(one, index=free + place) for place, one in enumerate(members)]
            scored = [*self.among.members, *named]
        ensemble = Ensemble(scored)
        f1 = {name: f1_on(ensemble, made) for name, made in self.held_out.items()}
        atoms = {name: sum(map(len, made.truth)) for name, made in self.held_out.items()}
        held = {name: (one, _standard_error(one, atoms[name])) for name, one in f1.items()}
        return replace(assessment, f1=float(np.mean(list(f1.values()))), held=held)


def label_free_score(
    alone: Ensemble,
    frames_nyx: np.ndarray,
    pixel_size_pm: float | None,
    lattice: Lattice | None,
) -> float:
    """Return how well one member's atoms fit frames without truth, 0 to 1, mean over frames.

    Only two parts of the fitness count: rendered atoms against the frame, and the lattice. The
    member cannot raise these by itself. Its own confidence rises with any training, right or wrong.
    """
    scores = []
    for frame_yx in frames_nyx:
        atoms = alone.predict(frame_yx, pixel_size_pm).member_atoms
        parts = fitness(frame_yx, atoms, pixel_size_pm, lattice)[0].parts
        scores.append(combine({key: parts[key] for key in ("forward", "lattice") if key in parts}))
    return float(np.mean(scores))


def noise_like(frames_nyx: np.ndarray, seed: int) -> np.ndarray:
    """Return Gaussian noise with each frame's mean, deviation and power by spatial frequency.

    The power is averaged over rings. So the peaks of a lattice are gone, while grain, blur and slow
    changes of brightness stay. The result looks like a frame without atoms.
    """
    rng = np.random.default_rng(seed)
    return np.stack([_noise_like(frame.astype(np.float64), rng) for frame in frames_nyx])


def _noise_like(frame_yx: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rows, columns = frame_yx.shape
    frequency_yx = np.hypot(fft.fftfreq(rows)[:, None], fft.rfftfreq(columns)[None])
    ring_yx = np.rint(frequency_yx * max(rows, columns)).astype(np.intp)
    power_yx = np.abs(fft.rfft2(frame_yx - frame_yx.mean())) ** 2
    count_r = np.maximum(np.bincount(ring_yx.ravel()), 1)
    level_r = np.sqrt(np.bincount(ring_yx.ravel(), power_yx.ravel()) / count_r)
    white_yx = fft.rfft2(rng.normal(size=frame_yx.shape))
    noise_yx = fft.irfft2(white_yx * level_r[ring_yx], s=frame_yx.shape)
    noise_yx *= frame_yx.std() / max(float(noise_yx.std()), 1e-12)
    return np.asarray(noise_yx - noise_yx.mean() + frame_yx.mean(), np.float32)


def f1_on(ensemble: Ensemble, made: Simulated) -> float:
    """Return the ensemble's F1 on frames with truth."""
    sizes = [float(size) for size in made.pixel_size_pm]
    found = [
        ensemble.predict(frame, size).atoms
        for frame, size in zip(made.frames_nyx, sizes, strict=True)
    ]
    shapes = [(frame.shape[0], frame.shape[1]) for frame in made.frames_nyx]
    return score_frames(found, made.truth, sizes, shapes=shapes).f1


def _standard_error(f1: float, atoms: int) -> float:
    """Return the standard error of F1 by the number of atoms; above 0 even at F1 = 1."""
    share = (f1 * atoms + 1) / (atoms + 2)
    return math.sqrt(share * (1 - share) / max(atoms, 1))


def gate(before: Assessment, after: Assessment, max_regression: float) -> str:
    """Return why the gate refuses a member; empty if the member passes.

    The tests are written as `not after >= before`, so that NaN never passes.
    """
    return loss_refusal(before, after, max_regression) or gain_refusal(before, after)


def loss_refusal(before: Assessment, after: Assessment, max_regression: float) -> str:
    """Return which loss on held-out truth is too great; empty if none is.

    F1 of a single condition may fall by two standard errors, as its few atoms resolve no more. A
    gain on a bad condition does not balance a loss on a good one. Conditions where the parent was
    of no use do not count.
    """
    for name in _useful(before):
        (was, error), now = before.held[name], after.held.get(name, (math.nan, 0.0))[0]
        if not now >= was - max_regression - 2 * error:
            return f"F1 on held-out truth of {name} fell from {was:.3f} to {now:.3f}"
    was, now = held_means(before, after)
    if not now >= was - max_regression:
        return (
            f"F1 on held-out truth fell from {was:.3f} to {now:.3f}, more than {max_regression:g}"
        )
    return ""


def held_means(before: Assessment, after: Assessment) -> tuple[float, float]:
    """Return the mean F1 on held-out truth before and after, where the member was of use before.

    Other conditions do not count: a gain where the member stays useless could hide a loss.
    """
    useful = _useful(before)
    return _mean_f1(before, useful), _mean_f1(after, useful)


def gain_refusal(before: Assessment, after: Assessment) -> str:
    """Return which gain on the new frames is missing; empty if none is."""
    if not after.fitness >= before.fitness + LEAST_GAIN:
        return f"label-free score went from {before.fitness:.3f} to {after.fitness:.3f}"
    if not after.fitness >= after.on_noise + NOISE_LEAD:
        return (
            f"its atoms fit noise of the same spectrum as well as the frames "
            f"({after.on_noise:.3f} and {after.fitness:.3f}): there may be nothing on them"
        )
    if after.twin_f1 is not None and not after.twin_f1 >= (before.twin_f1 or 0.0):
        return f"F1 on labelled twins fell from {before.twin_f1:.3f} to {after.twin_f1:.3f}"
    return ""


def _useful(before: Assessment) -> list[str]:
    return [name for name, held in before.held.items() if held[0] >= USELESS_F1]


def _mean_f1(assessment: Assessment, conditions: Sequence[str]) -> float:
    """Return the mean F1 over some held-out conditions; over all if there are none."""
    if not conditions:
        return assessment.f1
    return float(np.mean([assessment.held[name][0] for name in conditions]))
