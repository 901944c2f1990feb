"""The calibration set: the answers of all members of an ensemble on frames with known truth.

Frames are simulated under many conditions that are drawn from policies. Of each frame its summaries
are stored, the scores of every member, and the probability that every member gives to every atom
that any member found. The answer of any sub-ensemble on these frames can then be computed without a
network. Selection, predicted F1 and calibration of a sub-ensemble are learned from it.
Axis letters: n frame, m member, f score, s number of a summary, k atom that any member saw.

Source: "reference table" is the term of approximate Bayesian computation (Marin et al., Stat.
Comput. 22, 1167 (2012)); storing the probabilities of the members in it is ours.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from manybeam.data.simulation import SIMULATOR
from manybeam.errors import Corrupt, InvalidInput, NotFound
from manybeam.learn.analysis.condition_inference import draw
from manybeam.learn.analysis.fitness import LATTICES, SCORES
from manybeam.learn.analysis.frame_analysis import FrameAnalysis, analyse
from manybeam.learn.nets.atoms import cluster_atoms, strongest
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.prediction import NEIGHBOUR_SHARE
from manybeam.learn.scoring.scores import f1_of, match_frame
from manybeam.spec import Policy

VERSION = 2
BELIEVED = 0.5  # least mean probability of an atom in an answer
UNSTRUCTURED = 1  # sets without the structure of their samples
SHAPE = (128, 128)  # of a frame if the policy has none
_UNREADABLE = (  # raised by reading a damaged npz
    ValueError,
    LookupError,
    TypeError,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Simulated frames, and the answers of each member on them.

    Attributes:
        members: indices of the members, in the order of every axis m.
        source_n: id of the policy that the condition of each frame was drawn from.
        summary_ns: summaries of each frame, `learn.analysis.summaries`.
        score_nmf: label-free scores by `fitness.SCORES`; NaN if one does not apply.
        count_nm3: true positives, false positives and false negatives of each member.
        truth_n: number of true atoms of each frame that count.
        frame_k: frame of each atom that any member found.
        belief_km: probability that each member gives it, half precision.
        is_true_k: whether it is a true atom.
        counts_k: whether it counts (atoms at the border do not).
        error_k: distance from the true atom, in pm; NaN if there is none.
        structure: structure of the samples, `spec.Sample`. Frames that are compared with these
            have to be scored with its lattice. "" in sets of older versions.
    """

    members: tuple[int, ...]
    source_n: np.ndarray
    summary_ns: np.ndarray
    score_nmf: np.ndarray
    count_nm3: np.ndarray
    truth_n: np.ndarray
    frame_k: np.ndarray
    belief_km: np.ndarray
    is_true_k: np.ndarray
    counts_k: np.ndarray
    error_k: np.ndarray
    structure: str = ""

    def __len__(self) -> int:
        return len(self.truth_n)

    @property
    def f1_nm(self) -> np.ndarray:
        """F1 of each member on each frame."""
        return f1_of(self.count_nm3)

    def belief(self, weights: Mapping[int, float]) -> np.ndarray:
        """Return the weighted mean probability of each atom, (k,)."""
        places = [self.members.index(member) for member in weights]
        weight_m = np.array(list(weights.values()))
        mean_k = self.belief_km[:, places].astype(np.float32) @ (weight_m / weight_m.sum())
        return np.asarray(mean_k)

    def f1(self, weights: Mapping[int, float], threshold: float = BELIEVED) -> np.ndarray:
        """Return the F1 of a sub-ensemble on each frame, (n,); exact unless atoms merge."""
        return self._f1(self.found(weights, threshold))

    def f1_of_each(self, answerers: Sequence[Mapping[int, float]]) -> np.ndarray:
        """Return `f1` of several sub-ensembles, (n, q); faster than one by one."""
        share_mq = np.zeros((len(self.members), len(answerers)), np.float32)
        for q, weights in enumerate(answerers):
            total = sum(weights.values())
            for member, share in weights.items():
                share_mq[self.members.index(member), q] = share / total
        belief_kq = self.belief_km.astype(np.float32) @ share_mq
        f1_qn = [self._f1(self._found(belief_k, BELIEVED)) for belief_k in belief_kq.T]
        return np.stack(f1_qn, axis=1)

    def found(
        self, weights: Mapping[int, float], threshold: float = BELIEVED
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of true and of false atoms that a sub-ensemble finds on each frame."""
        return self._found(self.belief(weights), threshold)

    def _found(self, belief_k: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        found_k = (belief_k >= threshold) & self.counts_k
        hits_n, false_n = (
            np.bincount(self.frame_k[found_k & one_k], minlength=len(self))
            for one_k in (self.is_true_k, ~self.is_true_k)
        )
        return hits_n, false_n

    def _f1(self, found: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        hits_n, false_n = found
        return f1_of(np.stack([hits_n, false_n, self.truth_n - hits_n], axis=1))

    def only(self, member: int) -> "CalibrationSet":
        """Return the set of one member only, without scores of agreement.

        Raises:
            NotFound: the member is not in the set.
        """
        if member not in self.members:
            raise NotFound(
                f"member {member:02d} is not in the calibration set",
                f"its members: {', '.join(map(str, self.members))}",
                "manybeam calibrate REF again",
            )
        place = self.members.index(member)
        score_nmf = self.score_nmf[:, [place]].copy()
        score_nmf[..., SCORES.index("agreement")] = np.nan
        return replace(
            self,
            members=(member,),
            score_nmf=score_nmf,
            count_nm3=self.count_nm3[:, [place]],
            belief_km=self.belief_km[:, [place]],
        )

    @classmethod
    def joined(cls, parts: "Sequence[CalibrationSet]") -> "CalibrationSet":
        """Return one set with the frames of several, in their order.

        Raises:
            InvalidInput: their members differ.
        """
        if len({(part.members, part.structure) for part in parts}) != 1:
            raise InvalidInput(
                "calibration sets of different members cannot be joined",
                "all need the same members",
            )
        starts = np.cumsum([0, *(len(part) for part in parts)])
        columns = {
            one.name: np.concatenate([getattr(part, one.name) for part in parts])
            for one in fields(cls)
            if one.name not in ("members", "frame_k", "structure")
        }
        frame_k = [part.frame_k + start for part, start in zip(parts, starts, strict=False)]
        return cls(
            members=parts[0].members,
            frame_k=np.concatenate(frame_k),
            structure=parts[0].structure,
            **columns,
        )

    def to_bytes(self) -> bytes:
        """Return the bytes of an npz file without Python objects."""
        arrays = {one.name: np.asarray(getattr(self, one.name)) for one in fields(self)}
        arrays |= {"version": np.array([VERSION, SIMULATOR]), "scores": np.array(SCORES)}
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "CalibrationSet":
        """Return the set of the bytes that `to_bytes` made.

        Raises:
            Corrupt: the bytes are no such set, or one of another version.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            version = arrays.pop("version")[0]
            is_known = version in (VERSION, UNSTRUCTURED)
            if not is_known or tuple(arrays.pop("scores")) != SCORES:
                raise ValueError("it is of another version of the software")
            members = tuple(int(member) for member in arrays.pop("members"))
            # A newer set without a structure is damaged.
            structure = "" if version == UNSTRUCTURED else str(arrays.pop("structure"))
            return cls(members=members, structure=structure, **arrays)
        except _UNREADABLE as error:
            raise Corrupt(
                "a calibration set cannot be read",
                str(error),
                "manybeam calibrate REF again",
            ) from error


def measure_calibration_set(
    ensemble: Ensemble, policies: Sequence[Policy], start: int, stop: int, *, seed: int
) -> CalibrationSet:
    """Return the rows `start` to `stop` of an ensemble's calibration set.

    Row n is of one condition, drawn from the policy n modulo their number. It depends on the seed
    and on n only, so the distribution of rows over workers has no effect.

    Args:
        ensemble: the members.
        policies: the policies of the conditions; all of one structure.
        start: first row.
        stop: row after the last.
        seed: of all rows.

    Raises:
        InvalidInput: no rows, or policies of different structures.
    """
    if len({policy.sample.structure for policy in policies}) != 1 or stop <= start:
        raise InvalidInput(
            "a calibration set needs frames of one structure",
            ", ".join(f"{one.id}: {one.sample.structure}" for one in policies) or "no policy",
            "give policies of the structure that the ensemble was trained for",
        )
    rows = [_row(ensemble, policies[n % len(policies)], (seed, n)) for n in range(start, stop)]
    return CalibrationSet.joined(rows)


def _row(ensemble: Ensemble, policy: Policy, seed: tuple[int, int]) -> CalibrationSet:
    from manybeam.data.simulation.simulate import simulate  # needs torch, reading a set does not

    rng = np.random.default_rng(seed)
    shape = policy.scan.shape or SHAPE
    made = simulate(draw(policy, rng), 1, seed=int(rng.integers(2**31)), shape=shape)
    seen = analyse(
        ensemble,
        made.frames_nyx[0],
        float(made.pixel_size_pm[0]),
        LATTICES.get(policy.sample.structure),
    )
    return _of_frame(seen, made.truth[0], policy)


def _of_frame(seen: FrameAnalysis, truth: np.ndarray, policy: Policy) -> CalibrationSet:
    """Return the row of an analysed frame whose truth is known."""
    prediction, size_pm = seen.prediction, seen.pixel_size_pm
    shape = prediction.shape
    truth = _inside(truth, seen.window)
    counts = [match_frame(a, truth, size_pm, shape).counts for a in prediction.member_atoms]
    place_k2 = _found_by_any(seen)
    union = match_frame(place_k2, truth, size_pm, shape)
    error_k = np.full(len(place_k2), np.nan)
    error_k[union.match.found_index] = union.match.distance_px * (size_pm or np.nan)
    return CalibrationSet(
        members=prediction.members,
        source_n=np.array([policy.id]),
        summary_ns=seen.summary_cs.mean(axis=0, keepdims=True),
        score_nmf=seen.score_mf[None],
        count_nm3=np.array([counts]),
        truth_n=np.array([union.counts[0] + union.counts[2]]),
        frame_k=np.zeros(len(place_k2), np.int64),
        belief_km=prediction.belief(place_k2).astype(np.float16),
        is_true_k=union.is_true,
        counts_k=union.found_counts,
        error_k=error_k,
        structure=policy.sample.structure,
    )


def _inside(truth: np.ndarray, window: tuple[slice, slice]) -> np.ndarray:
    """Return the true atoms in the pixels of the analysed window."""
    moved = truth.copy()
    moved[:, :2] -= [part.start for part in window]
    return np.asarray(moved)


def _found_by_any(seen: FrameAnalysis) -> np.ndarray:
    """Return positions (k, 2) of atoms that any member found, clustered as in an answer."""
    radius_px = seen.radius_px
    atoms = cluster_atoms(seen.prediction.member_atoms, radius_px)
    kept = np.sort(strongest(atoms[:, :2], atoms[:, 3], NEIGHBOUR_SHARE * radius_px))
    return np.asarray(atoms[kept, :2])
