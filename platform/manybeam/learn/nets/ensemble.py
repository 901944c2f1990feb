"""Ensembles: members that answer together, for a frame of any size and pixel size.

Every member gets the frame at the pixel size of its training, so members of different recipes can
answer together. The answers are transformed to pixels of the frame.

Axis letters: m member, n frame or atom, c kind of atom, y row, x column, 2 the pair (y, x).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from manybeam.data.io.reading import check_frame
from manybeam.data.representation import Drawable
from manybeam.data.tiles import normalise, rescale
from manybeam.errors import InvalidInput, MemberCountError, TooLarge
from manybeam.learn.nets.answer import MapTotals, MemberAnswer
from manybeam.learn.nets.atoms import Found, find_atoms_of_members, sample
from manybeam.learn.nets.inference.engine import Engine
from manybeam.learn.nets.inference.graphs import Graphs
from manybeam.learn.nets.inference.runtime import cores
from manybeam.learn.nets.inference.tiled import TILE_PX, around, probabilities
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.prediction import NEIGHBOUR_SHARE, Prediction, places_of
from manybeam.settings import settings
from manybeam.spec.recipe import Network, TileSpec

Map = NDArray[np.float32]
Stack = NDArray[np.float32]

PIXEL_SIZE_PM = (1.0, 500.0)  # other values have a wrong unit
AT_ONCE_PX = 1 << 23  # pixels of maps that are handled together
EXACT_PX = 1 << 25  # of all maps of one answer; more are stored in half precision
BORDER_PX = 16  # around a window, in which atoms are found too; they compete with those inside
BORDER_RADII = 4  # the same in radii of the training masks, whichever is more


class Ensemble(Drawable, html="manybeam.learn.nets.notebook:ensemble_html"):
    """Networks in memory that answer together; safe to use from several threads.

    Args:
        members: at least one, of any recipes, each with its own index.
        tile_px: frames with more pixels than a square of this side are cut into overlapping tiles,
            in the member's pixels.
        device: where to compute; the GPU if there is one, else the CPU.
        graphs: compiled networks of this machine, which answer on a CPU. What is missing is
            compiled now, in a third of a second for each member.

    Raises:
        MemberCountError: no member.
        InvalidInput: two members with one index.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        tile_px: int = TILE_PX,
        device: str | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        _check_members(members)
        self.members = tuple(members)
        self.tile_px = tile_px
        self._engine = Engine(self.members, device, graphs)

    @property
    def device(self) -> str:
        """Where the networks run, as `cpu`, `cpu, compiled` or `cuda`."""
        return self._engine.device

    @property
    def is_reduced(self) -> bool:
        """Whether the networks compute in bfloat16."""
        return self.device.endswith("bf16")

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
        places = places_of(indices, self.indices)
        part = Ensemble.__new__(Ensemble)
        part.members = tuple(self.members[place] for place in places)
        part.tile_px, part._engine = self.tile_px, self._engine.part(places)
        return part

    def predict(
        self,
        frame_yx: Map,
        pixel_size_pm: float | None,
        *,
        members: Sequence[int] | None = None,
        threshold: float = 0.5,
        window: tuple[slice, slice] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Prediction:
        """Return atoms, mean and spread of one frame.

        Args:
            frame_yx: one frame of any size and real dtype.
            pixel_size_pm: edge of a pixel, in pm, 1 to 500. If None, the frame is not rescaled;
                this is right only if its pixel size is that of the training.
            members: indices of the members that answer; all if left out.
            threshold: least mean probability of an atom, and least probability in a member.
            window: rows and columns for which an answer is needed; `inside` gives it. What is said
                of the rest has no meaning. Networks run on what has an effect on the window.
            check: called before each network and tile; what it raises ends the work.

        Raises:
            InvalidFrame: the array is not a frame.
            InvalidInput: the pixel size is out of bounds.
            TooLarge: at the members' pixel sizes, the frame would be larger than `max_frame_px`, or
                all their frames together larger than `max_work_px`.
            NotFound: no member has one of these indices.
        """
        _check_pixel_size(pixel_size_pm)
        frame_yx = check_frame(frame_yx)
        places = places_of(self.indices if members is None else members, self.indices)
        shape = (frame_yx.shape[0], frame_yx.shape[1])
        answer_of: dict[int, MemberAnswer] = {}
        groups = self._alike(places)
        views = {_MemberView.by(spec) for spec, _ in groups}
        seen = {view: view.of(frame_yx, pixel_size_pm) for view in views}
        given = {
            (spec, network): _Given.of(*seen[_MemberView.by(spec)], spec, network, window)
            for spec, network in groups
        }
        work_px = sum(len(group) * given[key].input_yx.size for key, group in groups.items())
        _check_work(work_px)
        totals = MapTotals(shape) if work_px > EXACT_PX and window is None else None
        for key, group in groups.items():
            one, network = given[key], key[1]
            count = max(1, AT_ONCE_PX // one.input_yx.size)
            for start in range(0, len(group), count):
                part = group[start : start + count]
                networks = [self._engine.networks[place] for place in part]
                prob_mcyx = probabilities(networks, one.input_yx, network, self.tile_px, check)
                answers = _answers(prob_mcyx[..., *one.kept], key[0], one, threshold)
                if totals is not None:
                    for answer in answers:
                        totals.add(answer.on_frame(shape))
                if work_px > EXACT_PX:
                    answers = [answer.stored() for answer in answers]
                answer_of.update(zip(part, answers, strict=True))
        return Prediction.of_answers(
            [answer_of[place] for place in places],
            [self.members[place].index for place in places],
            shape,
            pixel_size_pm=pixel_size_pm,
            elements=self.elements,
            threshold=threshold,
            maps=totals.result() if totals else None,
        )

    def predict_stack(
        self,
        frames_nyx: Stack,
        pixel_size_pm: float | Sequence[float | None] | None,
        *,
        members: Sequence[int] | None = None,
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
            self.predict(frame, size, members=members, threshold=threshold).without_maps()
            for frame, size in zip(frames_nyx, sizes, strict=True)
        ]

    def _alike(self, places: Sequence[int]) -> dict[tuple[TileSpec, Network], list[int]]:
        """Return the places of members that are handled together."""
        groups: dict[tuple[TileSpec, Network], list[int]] = {}
        for place in places:
            recipe = self.members[place].recipe
            groups.setdefault((recipe.tiles, recipe.network), []).append(place)
        return groups


@dataclass(frozen=True)
class _MemberView:
    """How members get a frame; the fields are those of `TileSpec`."""

    pixel_size_pm: float
    normalise: str
    local_nm: float

    @classmethod
    def by(cls, spec: TileSpec) -> "_MemberView":
        """Return that of a recipe."""
        return cls(spec.pixel_size_pm, spec.normalise, spec.local_nm)

    def of(self, frame_yx: Map, pixel_size_pm: float | None) -> tuple[Map, float]:
        """Return a frame as members get it, and the scale."""
        scale = 1.0
        if pixel_size_pm is not None:
            frame_yx, scale = rescale(frame_yx, pixel_size_pm, self.pixel_size_pm)
        return normalise(frame_yx, self.normalise, self.local_nm * 1000 / self.pixel_size_pm), scale


@dataclass(frozen=True)
class _Given:
    """What members of one recipe get of a frame, and what is kept of their answer.

    Attributes:
        input_yx: the frame, or a part of it.
        scale: its pixels for each recorded pixel.
        origin: row and column of the frame, in the members' pixels, at which what is kept begins.
        kept: rows and columns of the answer that are kept.
    """

    input_yx: Map
    scale: float
    origin: tuple[int, int] = (0, 0)
    kept: tuple[slice, slice] = (slice(None), slice(None))

    @classmethod
    def of(
        cls,
        input_yx: Map,
        scale: float,
        spec: TileSpec,
        network: Network,
        window: tuple[slice, slice] | None,
    ) -> "_Given":
        """Return what is given of a frame for a window of it."""
        if window is None:
            return cls(input_yx, scale)
        border = max(BORDER_PX, round(BORDER_RADII * spec.mask_radius_pm / spec.pixel_size_pm))
        outer = around(window, input_yx.shape, scale, network, border)
        starts, kept = [], []
        for part, whole in zip(window, outer, strict=True):
            start = max(int(part.start * scale) - border, whole.start)
            stop = min(int(np.ceil(part.stop * scale)) + border, whole.stop)
            starts.append(start)
            kept.append(slice(start - whole.start, stop - whole.start))
        return cls(
            np.ascontiguousarray(input_yx[outer]), scale, (starts[0], starts[1]), (kept[0], kept[1])
        )


def _answers(
    prob_mcyx: Stack, spec: TileSpec, given: _Given, threshold: float
) -> list[MemberAnswer]:
    """Return the answers of members of one recipe from their maps."""
    scale, origin_2 = given.scale, np.array(given.origin, np.float32)
    start = (-given.origin[0] / scale, -given.origin[1] / scale)
    prob_myx = prob_mcyx.max(axis=1)
    radius_px = spec.mask_radius_pm / spec.pixel_size_pm
    atoms_m = _found(prob_myx, threshold, max(NEIGHBOUR_SHARE * radius_px, 1.0))
    for atoms, prob_cyx in zip(atoms_m, prob_mcyx, strict=True):
        if len(prob_cyx) > 1:
            belief_cn = [sample(prob_yx, atoms[:, :2]) for prob_yx in prob_cyx]
            atoms[:, 2] = 1 + np.argmax(belief_cn, axis=0)
        atoms[:, :2] = (atoms[:, :2] + origin_2 + 0.5) / scale - 0.5
    return [
        MemberAnswer(atoms, prob_yx, scale, radius_px / scale, start)
        for atoms, prob_yx in zip(atoms_m, prob_myx, strict=True)
    ]


def _found(prob_myx: Stack, threshold: float, apart_px: float) -> list[Found]:
    """Return the atoms of each map; the cores share the maps."""
    find = partial(find_atoms_of_members, threshold=threshold, min_distance_px=apart_px)
    parts = np.array_split(prob_myx, min(cores(), len(prob_myx)))
    found = map(find, parts) if len(parts) == 1 else _threads().map(find, parts)
    return [atoms for part in found for atoms in part]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="atoms")


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


def _check_work(work_px: int) -> None:
    """Refuse what would keep the cores busy for minutes, before it begins."""
    most = settings().max_work_px
    if work_px > most:
        raise TooLarge(
            f"{work_px:.3g} px of work: all members, each at its pixel size",
            f"at most {most:.3g} px (max_work_px)",
            "correct pixel_size_pm, crop the frame, or ask fewer members",
        )
