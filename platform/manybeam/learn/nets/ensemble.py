"""Ensembles: members that answer together, for a frame of any size and pixel size.

Every member gets the frame at the pixel size of its training, so members of different recipes can
answer together. The answers are transformed to pixels of the frame.

Axis letters: m member, n frame or atom, c kind of atom, y row, x column, 2 the pair (y, x).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from manybeam.data.io.reading import check_frame
from manybeam.data.representation import Drawable
from manybeam.data.tiles import normalise, rescale
from manybeam.errors import InvalidInput, MemberCountError, NotFound
from manybeam.learn.nets.answer import MemberAnswer, Moments, atoms_inside
from manybeam.learn.nets.atoms import cluster_atoms, find_atoms, sample, strongest
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.tiled import TILE_PX, prepare, probabilities
from manybeam.spec.recipe import TileSpec

Map = NDArray[np.float32]
Stack = NDArray[np.float32]

PIXEL_SIZE_PM = (1.0, 500.0)  # other values have a wrong unit
NEIGHBOUR_SHARE = 1.5  # least distance of two atoms, per radius of the training masks
WEIGHT_SUM_ERROR = 1e-6  # largest rounding error of weights that sum to 1


@dataclass(frozen=True, eq=False)
class Prediction(Drawable, html="manybeam.learn.nets.notebook:prediction_html"):
    """The answer of an ensemble for one frame, in pixels of the frame.

    Attributes:
        atoms: float32 (atoms, 7): y, x, class, probability, spread_y_px, spread_x_px, votes; the
            most probable first. Class is 0 if the network knows one kind of atom only, else the
            number of the kind, from 1. See `learn.nets.atoms.cluster_atoms`.
        mean_yx: float32, mean over members of the probability of an atom.
        std_yx: float32, standard deviation over members (n - 1 divisor; zeros from one member).
        member_atoms: for each member, float32 (atoms, 4): y, x, class, probability.
        prob_myx: float32, each member's map, if requested.
        pixel_size_pm: edge of a pixel, in pm; None if unknown.
        members: indices of the members that answered, in order.
        mi_yx: float32, mutual information of members and "an atom or none", in nats, 0 to ln 2.
            It is high where members contradict each other, and low where all are equally unsure.
            Zeros from one member. See `learn.nets.answer.Moments`.
        elements: atomic number of each class; empty if members report one kind, or number them
            apart.
    """

    atoms: NDArray[np.float32]
    mean_yx: Map
    std_yx: Map
    member_atoms: list[NDArray[np.float32]]
    prob_myx: Stack | None
    pixel_size_pm: float | None
    members: tuple[int, ...]
    mi_yx: Map | None = None
    elements: tuple[int, ...] = ()
    _answers: tuple[MemberAnswer, ...] = field(default=(), repr=False)
    _threshold: float = field(default=0.5, repr=False)

    def subset(
        self, members: Sequence[int], weights: Sequence[float] | None = None
    ) -> "Prediction":
        """Return the answer of some of the members, without running their networks again.

        It is that of `Ensemble.predict` for these members, except for rounding: the map of each
        member is stored in half precision.

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
        total = Moments(self.mean_yx.shape)
        for answer, weight in zip(answers, weight_m, strict=True):
            total.add(answer.on_frame(self.mean_yx.shape), weight)
        mean_yx, std_yx, mi_yx = total.result()
        return replace(
            self,
            atoms=_bring_together(answers, self._threshold, mean_yx.shape, weight_m),
            mean_yx=mean_yx,
            std_yx=std_yx,
            mi_yx=mi_yx,
            member_atoms=[answer.atoms for answer in answers],
            prob_myx=None if self.prob_myx is None else self.prob_myx[places],
            members=tuple(self.members[place] for place in places),
            _answers=answers,
        )

    def inside(self, window: tuple[slice, slice]) -> "Prediction":
        """Return the prediction for a window of the frame, in pixels of the window."""
        answers = tuple(answer.inside(window) for answer in self._answers)
        return replace(
            self,
            atoms=atoms_inside(self.atoms, window),
            mean_yx=self.mean_yx[window],
            std_yx=self.std_yx[window],
            mi_yx=None if self.mi_yx is None else self.mi_yx[window],
            prob_myx=None if self.prob_myx is None else self.prob_myx[:, *window],
            member_atoms=[answer.atoms for answer in answers],
            _answers=answers,
        )

    def atoms_of(self, members: Sequence[int], weights: Sequence[float]) -> NDArray[np.float32]:
        """Return the atoms of `subset` for these members, without the maps.

        Raises:
            NotFound: one of them did not answer.
            InvalidInput: invalid weights, or the prediction has no maps of single members.
        """
        answers, weight_m = self._share(members, weights)
        return _bring_together(answers, self._threshold, self.mean_yx.shape, weight_m)

    def belief(self, position_n2: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return each member's probability of an atom at positions of the frame, (n, members).

        It is that of the member's nearest atom within the radius of its masks, else that of its
        map. Answers of an ensemble use the same rule.
        """
        if not len(position_n2):
            return np.zeros((0, len(self._answers)))
        return np.stack([answer.belief(position_n2) for answer in self._answers], axis=1)

    def _share(
        self, members: Sequence[int], weights: Sequence[float] | None
    ) -> tuple[tuple[MemberAnswer, ...], list[float]]:
        """Return the answers of the members with a weight above 0, and the weights."""
        if not self._answers:
            raise InvalidInput(
                "this prediction has no maps of single members",
                "`without_maps` and `predict_stack` do not keep them",
                "predict the frame by itself",
            )
        counting = _counting(members, weights)
        places = _places(list(counting), self.members)
        return tuple(self._answers[place] for place in places), list(counting.values())

    @property
    def radius_px(self) -> float:
        """Radius of the largest of the members' training masks, in pixels of the frame."""
        return max(answer.radius_px for answer in self._answers)

    def without_maps(self) -> "Prediction":
        """Return the prediction without maps of single members; saves 2 bytes a pixel each."""
        return replace(self, _answers=())


class Ensemble(Drawable, html="manybeam.learn.nets.notebook:ensemble_html"):
    """Networks in memory that answer together; safe to use from several threads.

    Args:
        members: at least one, of any recipes, each with its own index.
        tile_px: frames larger than this are cut into overlapping tiles, in the member's pixels.
        device: where to compute; the GPU if there is one, else the CPU.

    Raises:
        MemberCountError: no member.
        InvalidInput: two members with one index.
    """

    def __init__(
        self, members: Sequence[Member], *, tile_px: int = TILE_PX, device: str | None = None
    ) -> None:
        _check_members(members)
        self.members = tuple(members)
        self.tile_px = tile_px
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._networks = [prepare(member.network(), self.device) for member in members]

    @property
    def member_count(self) -> int:
        """The number of members."""
        return len(self.members)

    @property
    def indices(self) -> tuple[int, ...]:
        """Indices of the members, in order."""
        return tuple(member.index for member in self.members)

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic number of each class; empty if members report one kind, or number them apart."""
        own = {member.recipe.tiles.elements for member in self.members}
        return own.pop() if len(own) == 1 else ()

    def subset(self, indices: Sequence[int]) -> "Ensemble":
        """Return an ensemble of the members with these indices, sharing their networks.

        Raises:
            NotFound: no member has that index.
            MemberCountError: no index given.
        """
        places = _places(indices, self.indices)
        part = Ensemble.__new__(Ensemble)
        part.members = tuple(self.members[place] for place in places)
        part.tile_px, part.device = self.tile_px, self.device
        part._networks = [self._networks[place] for place in places]
        return part

    def predict(
        self,
        frame_yx: Map,
        pixel_size_pm: float | None,
        *,
        members: Sequence[int] | None = None,
        keep_members: bool = False,
        threshold: float = 0.5,
    ) -> Prediction:
        """Return atoms, mean and spread of one frame.

        Args:
            frame_yx: one frame of any size and real dtype.
            pixel_size_pm: edge of a pixel, in pm, 1 to 500. If None, the frame is not rescaled;
                this is right only if its pixel size is that of the training.
            members: indices of the members that answer; all if left out.
            keep_members: also return each member's map.
            threshold: least mean probability of an atom, and least probability in a member.

        Raises:
            InvalidFrame: the array is not a frame.
            InvalidInput: the pixel size is out of bounds.
            TooLarge: at the members' pixel size, the frame would be larger than `max_frame_px`.
            NotFound: no member has one of these indices.
        """
        _check_pixel_size(pixel_size_pm)
        frame_yx = check_frame(frame_yx)
        places = _places(self.indices if members is None else members, self.indices)
        inputs: dict[tuple[object, ...], tuple[Map, float]] = {}
        total, answers, kept = Moments(frame_yx.shape), [], []
        for place in places:
            spec = self.members[place].recipe.tiles
            key = (spec.pixel_size_pm, spec.normalise, spec.local_nm)
            if key not in inputs:
                inputs[key] = _see(frame_yx, pixel_size_pm, spec)
            answer = self._ask(place, *inputs[key], threshold)
            prob_yx = answer.on_frame(frame_yx.shape)
            total.add(prob_yx)
            answers.append(answer.stored())
            kept += [prob_yx] if keep_members else []
        mean_yx, std_yx, mi_yx = total.result()
        return Prediction(
            atoms=_bring_together(answers, threshold, frame_yx.shape),
            mean_yx=mean_yx,
            std_yx=std_yx,
            member_atoms=[answer.atoms for answer in answers],
            prob_myx=np.stack(kept) if keep_members else None,
            pixel_size_pm=pixel_size_pm,
            members=tuple(self.members[place].index for place in places),
            mi_yx=mi_yx,
            elements=self.elements,
            _answers=tuple(answers),
            _threshold=threshold,
        )

    def predict_stack(
        self,
        frames_nyx: Stack,
        pixel_size_pm: float | Sequence[float | None] | None,
        *,
        members: Sequence[int] | None = None,
        keep_members: bool = False,
        threshold: float = 0.5,
    ) -> list[Prediction]:
        """Return the prediction of each frame, as `predict` gives it.

        To save memory they have no maps of single members for `Prediction.subset`.
        """
        sizes = (
            pixel_size_pm
            if isinstance(pixel_size_pm, Sequence)
            else [pixel_size_pm] * len(frames_nyx)
        )
        return [
            self.predict(
                frame, size, members=members, keep_members=keep_members, threshold=threshold
            ).without_maps()
            for frame, size in zip(frames_nyx, sizes, strict=True)
        ]

    def _ask(self, place: int, input_yx: Map, scale: float, threshold: float) -> MemberAnswer:
        recipe = self.members[place].recipe
        prob_cyx = probabilities(self._networks[place], input_yx, recipe, self.tile_px, self.device)
        prob_yx = prob_cyx.max(axis=0)
        radius_px = recipe.tiles.mask_radius_pm / recipe.tiles.pixel_size_pm
        atoms = find_atoms(prob_yx, threshold, max(NEIGHBOUR_SHARE * radius_px, 1.0))
        if len(prob_cyx) > 1:
            atoms[:, 2] = 1 + np.argmax([sample(p_yx, atoms[:, :2]) for p_yx in prob_cyx], axis=0)
        atoms[:, :2] = (atoms[:, :2] + 0.5) / scale - 0.5
        return MemberAnswer(atoms, prob_yx, scale, radius_px / scale)


def _check_members(members: Sequence[Member]) -> None:
    indices = [member.index for member in members]
    if not indices:
        raise MemberCountError("an ensemble of no members", "at least one", "train one first")
    twice = sorted({index for index in indices if indices.count(index) > 1})
    if twice:
        raise InvalidInput(
            f"member index {twice[0]} given twice", "every member needs its own index"
        )


def _check_pixel_size(pixel_size_pm: float | None) -> None:
    low, high = PIXEL_SIZE_PM
    if pixel_size_pm is not None and not low <= pixel_size_pm <= high:
        raise InvalidInput(
            f"pixel_size_pm {pixel_size_pm!r} is out of bounds",
            f"{low:g} to {high:g} pm",
            "give the edge of a pixel in picometres (a 1024 px frame 8 nm wide has 7.8)",
        )


def _see(frame_yx: Map, pixel_size_pm: float | None, spec: TileSpec) -> tuple[Map, float]:
    """Return the frame as members with this spec get it, and the scale."""
    scale = 1.0
    if pixel_size_pm is not None:
        frame_yx, scale = rescale(frame_yx, pixel_size_pm, spec.pixel_size_pm)
    local_px = spec.local_nm * 1000 / spec.pixel_size_pm
    return normalise(frame_yx, spec.normalise, local_px), scale


def _places(indices: Sequence[int], held: Sequence[int]) -> list[int]:
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
