"""The prediction of an ensemble for one frame; from it come the answers of some of its members.

Axis letters: m member, n atom, y row, x column, 2 the pair (y, x).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from manybeam.data.representation import Drawable
from manybeam.errors import InvalidInput, MemberCountError, NotFound
from manybeam.learn.nets.answer import (
    Disagreement,
    Map,
    MemberAnswer,
    Moments,
    atoms_inside,
)
from manybeam.learn.nets.atoms import cluster_atoms, strongest

Stack = NDArray[np.float32]

NEIGHBOUR_SHARE = 1.5  # least distance of two atoms, per radius of the training masks
WEIGHT_SUM_ERROR = 1e-6  # largest rounding error of weights that sum to 1


@dataclass(frozen=True, eq=False)
class Prediction(Drawable, html="manybeam.learn.nets.notebook:prediction_html"):
    """The answer of an ensemble for one frame, in pixels of the frame.

    Maps of the whole ensemble are computed when they are asked for.

    Attributes:
        atoms: float32 (atoms, 7): y, x, class, probability, spread_y_px, spread_x_px, votes; the
            most probable first. Class is 0 if the network knows one kind of atom only, else the
            number of the kind, from 1. See `learn.nets.atoms.cluster_atoms`.
        member_atoms: for each member, float32 (atoms, 4): y, x, class, probability.
        members: indices of the members that answered, in order.
        shape: rows and columns of the frame.
        pixel_size_pm: edge of a pixel, in pm; None if unknown.
        elements: atomic number of each class; empty if members report one kind, or number them
            apart.
    """

    atoms: NDArray[np.float32]
    member_atoms: list[NDArray[np.float32]]
    members: tuple[int, ...]
    shape: tuple[int, int]
    pixel_size_pm: float | None = None
    elements: tuple[int, ...] = ()
    _answers: tuple[MemberAnswer, ...] = field(default=(), repr=False)
    _weights: tuple[float, ...] = field(default=(), repr=False)
    _threshold: float = field(default=0.5, repr=False)
    _known: tuple[Map, Map, Map] | None = field(default=None, repr=False)

    @classmethod
    def of_answers(
        cls,
        answers: Sequence[MemberAnswer],
        members: Sequence[int],
        shape: tuple[int, int],
        *,
        pixel_size_pm: float | None = None,
        elements: tuple[int, ...] = (),
        threshold: float = 0.5,
        maps: tuple[Map, Map, Map] | None = None,
    ) -> "Prediction":
        """Return the answer of these members together.

        Args:
            answers: the answers of the members.
            members: their indices.
            shape: rows and columns of the frame.
            pixel_size_pm: edge of a pixel, in pm.
            elements: atomic number of each class.
            threshold: least mean probability of an atom.
            maps: mean, standard deviation and mutual information, if they are known.
        """
        return cls(
            atoms=_bring_together(answers, threshold, shape),
            member_atoms=[answer.atoms for answer in answers],
            members=tuple(members),
            shape=shape,
            pixel_size_pm=pixel_size_pm,
            elements=elements,
            _answers=tuple(answers),
            _weights=(1.0,) * len(answers),
            _threshold=threshold,
            _known=maps,
        )

    @property
    def mean_yx(self) -> Map:
        """float32, mean over members of the probability of an atom."""
        return self._maps[0]

    @property
    def std_yx(self) -> Map:
        """float32, standard deviation over members (n - 1 divisor; zeros from one member)."""
        return self._maps[1]

    @cached_property
    def mi_yx(self) -> Map:
        """float32, mutual information of members and "an atom or none", in nats, 0 to ln 2.

        It is high where members contradict each other, and low where all are equally unsure. Zeros
        from one member. See `learn.nets.answer.Disagreement`.
        """
        if self._known is not None:
            return self._known[2]
        self._check_answers()
        disagreement = Disagreement.of(self._answers, self._weights, self.shape)
        return disagreement.result(self.mean_yx)

    @property
    def prob_myx(self) -> Stack:
        """float32, the map of each member.

        Raises:
            InvalidInput: the prediction has no maps of single members.
        """
        self._check_answers()
        return np.stack([answer.on_frame(self.shape) for answer in self._answers])

    @cached_property
    def _maps(self) -> tuple[Map, Map]:
        if self._known is not None:
            return self._known[:2]
        self._check_answers()
        return Moments.of(self._answers, self._weights, self.shape).result()

    def subset(
        self, members: Sequence[int], weights: Sequence[float] | None = None
    ) -> "Prediction":
        """Return the answer of some of the members, without running their networks again.

        It is that of `Ensemble.predict` for these members. Of a large frame it differs by rounding,
        because the map of each member is stored in half precision.

        Args:
            members: indices of members that answered.
            weights: weight of each of them, >= 0, sum 1; equal if left out. They apply to mean,
                spread and mutual information of the maps, and to position, class, probability
                and spread of the atoms. Votes are not weighted. A member with weight 0 is left
                out.

        Raises:
            NotFound: one of them did not answer.
            MemberCountError: no member.
            InvalidInput: invalid weights, or the prediction has no maps of single members.
        """
        answers, weight_m = self._share(members, weights)
        places = [self._answers.index(answer) for answer in answers]
        return replace(
            self,
            atoms=_bring_together(answers, self._threshold, self.shape, weight_m),
            member_atoms=[answer.atoms for answer in answers],
            members=tuple(self.members[place] for place in places),
            _answers=answers,
            _weights=tuple(weight_m),
            _known=None,
        )

    def inside(self, window: tuple[slice, slice]) -> "Prediction":
        """Return the prediction for a window of the frame, in pixels of the window."""
        answers = tuple(answer.inside(window) for answer in self._answers)
        rows, columns = (part.stop - part.start for part in window)
        return replace(
            self,
            atoms=atoms_inside(self.atoms, window),
            member_atoms=[answer.atoms for answer in answers],
            shape=(rows, columns),
            _answers=answers,
            _known=_in_window(self._known, window),
        )

    def atoms_of(self, members: Sequence[int], weights: Sequence[float]) -> NDArray[np.float32]:
        """Return the atoms of `subset` for these members.

        Raises:
            NotFound: one of them did not answer.
            InvalidInput: invalid weights, or the prediction has no maps of single members.
        """
        answers, weight_m = self._share(members, weights)
        return _bring_together(answers, self._threshold, self.shape, weight_m)

    def belief(self, position_n2: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return each member's probability of an atom at positions of the frame, (n, members).

        It is that of the member's nearest atom within the radius of its masks, else that of its
        map. Answers of an ensemble use the same rule.
        """
        self._check_answers()
        if not len(position_n2):
            return np.zeros((0, len(self._answers)))
        return np.stack([answer.belief(position_n2) for answer in self._answers], axis=1)

    def _share(
        self, members: Sequence[int], weights: Sequence[float] | None
    ) -> tuple[tuple[MemberAnswer, ...], list[float]]:
        """Return the answers of the members with a weight above 0, and the weights."""
        self._check_answers()
        counting = _counting(members, weights)
        places = places_of(list(counting), self.members)
        return tuple(self._answers[place] for place in places), list(counting.values())

    def _check_answers(self) -> None:
        if not self._answers:
            raise InvalidInput(
                "this prediction has no maps of single members",
                "`without_maps`, `atoms_only` and `predict_stack` do not keep them",
                "predict the frame by itself",
            )

    @property
    def radius_px(self) -> float:
        """Radius of the largest of the members' training masks, in pixels of the frame."""
        self._check_answers()
        return max(answer.radius_px for answer in self._answers)

    def without_maps(self) -> "Prediction":
        """Return the prediction with maps of the ensemble, but of no member; saves memory."""
        return replace(self, _answers=(), _known=(*self._maps, self.mi_yx))

    def atoms_only(self) -> "Prediction":
        """Return the prediction without any map; saves more memory."""
        return replace(self, _answers=(), _known=None)


def _in_window(
    maps: tuple[Map, Map, Map] | None, window: tuple[slice, slice]
) -> tuple[Map, Map, Map] | None:
    if maps is None:
        return None
    mean_yx, std_yx, mi_yx = (one[window] for one in maps)
    return mean_yx, std_yx, mi_yx


def places_of(indices: Sequence[int], held: Sequence[int]) -> list[int]:
    """Return the places of the members with these indices, each once."""
    place_of = {index: place for place, index in enumerate(held)}
    unknown = [index for index in indices if index not in place_of]
    if unknown:
        raise NotFound(
            f"no member {', '.join(map(str, unknown))} in this ensemble",
            f"it holds {', '.join(map(str, held))}",
        )
    if not len(indices):
        raise MemberCountError("no member was given", "an answer needs at least one")
    return [place_of[index] for index in dict.fromkeys(indices)]


def _counting(members: Sequence[int], weights: Sequence[float] | None) -> dict[int, float]:
    """Return the weights above 0; the largest is 1, so that equal weights are exact."""
    if weights is None:
        return dict.fromkeys(members, 1.0)
    weight_m = np.asarray(weights, float)
    if len(set(members)) < len(members) or weight_m.shape != (len(members),):
        raise InvalidInput(
            f"{weight_m.size} weights for members {list(members)}", "one for each, no member twice"
        )
    if not ((weight_m >= 0).all() and abs(weight_m.sum() - 1) < WEIGHT_SUM_ERROR):
        raise InvalidInput(f"weights {weight_m.tolist()}", "each >= 0, their sum 1")
    scaled = (weight_m / weight_m.max()).tolist()
    return {member: weight for member, weight in zip(members, scaled, strict=True) if weight > 0}


def _bring_together(
    answers: Sequence[MemberAnswer],
    threshold: float,
    shape: tuple[int, ...],
    weights: Sequence[float] | None = None,
) -> NDArray[np.float32]:
    """Return the atoms of the ensemble: clusters above the threshold, one for each atom."""
    radius_px = max(answer.radius_px for answer in answers)
    atoms = cluster_atoms(
        [answer.atoms for answer in answers],
        radius_px,
        sample_member=lambda member, position_n2: answers[member].at(position_n2),
        weights=weights,
    )
    atoms = atoms[atoms[:, 3] >= threshold]
    least_px = NEIGHBOUR_SHARE * min(answer.radius_px for answer in answers)
    atoms = atoms[np.sort(strongest(atoms[:, :2], atoms[:, 3], least_px))]
    atoms[:, :2] = np.clip(atoms[:, :2], 0, np.array(shape) - 1)
    return atoms
