"""The opening of the page of a version: what it is for, where it works and fails, what to take.

Everything is computed from its record, its scores and the library, and nothing is written by hand.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np

from manybeam.spec.imaging import Condition
from manybeam.web.render import number, page_of
from manybeam.web.version_cache import CachedVersion
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, SELECTED, Matrix, Score, is_simulated
from manybeam.zoo.reports.cards import POOR_F1
from manybeam.zoo.ways import Ways, measured_on, ways_of

GOOD_F1 = 0.95  # from here on a condition counts as "works": about one atom in twenty is wrong
CLEAR = 0.02  # a smaller difference of two F1 is not mentioned
LISTED = 3  # conditions named as best and as worst
# Quantities whose range describes where a version was measured: name, label, unit.
RANGES = (
    ("dose_e_per_a2", "dose", "e/Å²"),
    ("beam_kv", "beam", "kV"),
    ("pixel_size_pm", "pixels", "pm"),
    ("defocus_nm", "defocus", "nm"),
    ("contamination", "contamination", ""),
    ("row_jitter_pm", "row jitter", "pm"),
)


@dataclass(frozen=True)
class Spot:
    """A condition with the score of the version there.

    Attributes:
        condition: its id.
        title: its title in the library; "" if unknown.
        f1, low, high: F1 and its 95 % interval; the ends may be None.
        page: the page of an example frame: the one with the middle F1; "" if there is none.
        picture: the picture of that frame, with its atoms.
        is_simulated: whether its frames are simulated.
        selected_f1: F1 of the selected members there; None if it was not measured.
    """

    condition: str
    title: str
    f1: float
    low: float | None
    high: float | None
    page: str
    picture: str
    is_simulated: bool = False
    selected_f1: float | None = None


@dataclass(frozen=True)
class Overview:
    """What a person wants to know first about a version.

    Attributes:
        purpose: what it finds, in which frames.
        ranges: ranges of the quantities on which it was measured, a few words each.
        tally: on how many conditions it works, and on how many it fails.
        best: conditions on which it works, best first; if there are none, the best ones.
        worst: conditions on which it fails, worst first; if there are none, the weakest ones. None
            is in both lists.
        advice: what to take, a sentence each.
        ways: F1 of all members, of the selected ones and of the best ones, and how to measure it.
    """

    purpose: str
    ranges: tuple[str, ...]
    tally: str
    best: tuple[Spot, ...]
    worst: tuple[Spot, ...]
    advice: tuple[str, ...]
    ways: Ways

    @property
    def places(self) -> tuple[tuple[str, tuple[Spot, ...]], ...]:
        """The best and the worst conditions, each with a heading; without empty ones."""
        works = bool(self.best) and self.best[0].f1 >= GOOD_F1
        fails = bool(self.worst) and self.worst[0].f1 < POOR_F1
        found = (
            ("Where it works" if works else "Where it is best", self.best),
            ("Where it fails" if fails else "Where it is weakest", self.worst),
        )
        return tuple((title, spots) for title, spots in found if spots)

    @property
    def samples(self) -> tuple[tuple[str, Spot], ...]:
        """The example frames to show, each with its heading."""
        return tuple((title, spots[0]) for title, spots in self.places if spots[0].picture)


def make_overview(
    cached: CachedVersion, whole: Matrix, described: Mapping[str, Condition]
) -> Overview:
    """Return the opening of the page of a version or member.

    Args:
        cached: the version, or a member with its own scores.
        whole: the scores of all members.
        described: conditions of the library, by id.
    """
    matrix = cached.matrix
    known = [described[name] for name in matrix.conditions if name in described]
    spots = sorted(_spots(cached, described), key=lambda one: -one.f1)
    count = min(LISTED, (len(spots) + 1) // 2)
    best, worst = spots[:count], spots[count:][::-1][:LISTED]
    own = (one for one in cached.siblings if one.version == cached.record.version)
    ways = ways_of(cached.record, whole, next(own, None))
    working = [one for one in best if one.f1 >= GOOD_F1]
    failing = [one for one in worst if one.f1 < POOR_F1]
    return Overview(
        purpose=_purpose(cached, known),
        ranges=_ranges(known),
        tally=_tally(spots, matrix),
        best=tuple(working or best),
        worst=tuple(failing or worst),
        advice=tuple(_advice(cached, whole, ways)),
        ways=ways,
    )


def _purpose(cached: CachedVersion, known: Sequence[Condition]) -> str:
    modalities = _listed(one.modality.upper() for one in known)
    samples = _listed(one.sample.material or one.sample.structure for one in known)
    what = f"atoms in {modalities} frames of {samples}" if known else "atoms in microscope frames"
    count = cached.record.member_count
    if cached.record.selected is not None:
        return f"One network that finds {what}: a member of {cached.record.version_ref}."
    if count == 1:
        return f"One network that finds {what}."
    return f"{count} networks that find {what}."


def _ranges(known: Sequence[Condition]) -> tuple[str, ...]:
    """Return the range of each quantity that all these conditions state."""
    numbers = [
        {path.rpartition(".")[2]: value for path, value in one.quantities()} for one in known
    ]
    found = []
    for name, label, unit in RANGES:
        values = [x for one in numbers if isinstance(x := one.get(name), float)]
        if values and max(values) > 0:
            low, high = number(min(values)), number(max(values))
            span = low if low == high else f"{low} to {high}"
            found.append(f"{label} {span}{f' {unit}' if unit else ''}")
    return tuple(found)


def _spots(cached: CachedVersion, described: Mapping[str, Condition]) -> Iterable[Spot]:
    row = cached.record.subject
    for condition in cached.matrix.conditions:
        values = cached.matrix.values(row, condition)
        if "f1" in values:
            title = described[condition].title if condition in described else ""
            ends = (values.get("f1_low"), values.get("f1_high"))
            score = cached.matrix.score(row, condition)
            chosen = cached.matrix.value(SELECTED, condition)
            is_made = is_simulated(cached.matrix.condition_digest(condition))
            yield Spot(
                condition, title, values["f1"], *ends, *_sample(cached, score), is_made, chosen
            )


def _sample(cached: CachedVersion, score: Score | None) -> tuple[str, str]:
    """Return the addresses of the page and the picture of the frame with the middle F1."""
    if score is None or not score.counts:
        return "", ""
    from manybeam.learn.scoring.scores import f1_of

    order = np.argsort(f1_of(np.array(score.counts)), kind="stable")
    frame = int(order[len(order) // 2])
    page = f"{page_of(cached.record.version_ref)}/example/{quote(score.condition)}"
    member = "" if score.member < 0 else f"member={score.member:02d}&"
    return f"{page}?{member}frame={frame}", f"{page}/sample?{member}frame={frame}"


def _tally(spots: Sequence[Spot], matrix: Matrix) -> str:
    if not spots:
        return "It was not measured on any condition, so nobody knows yet where it works."
    good, poor = (
        sum(one.f1 >= GOOD_F1 for one in spots),
        sum(one.f1 < POOR_F1 for one in spots),
    )
    chosen = [one.selected_f1 for one in spots if one.selected_f1 is not None]
    selected = (
        f" with all members together; with those selected for each frame, it works on "
        f"{sum(one >= GOOD_F1 for one in chosen)} of {len(chosen)} and fails on "
        f"{sum(one < POOR_F1 for one in chosen)}"
    )
    where = measured_on(matrix, (one.condition for one in spots))
    return (
        f"Measured on {where}: it works on {good} (F1 {GOOD_F1:g} or more) and "
        f"fails on {poor} (F1 below {POOR_F1:g}){selected if chosen else ''}."
    )


def _advice(cached: CachedVersion, matrix: Matrix, ways: Ways) -> Iterable[str]:
    record = cached.record
    if record.archived:
        yield "Take another version: this one is archived."
        return
    serving = next((one.ref for one in cached.siblings if "serving" in one.aliases), "")
    if serving and serving != record.version_ref:
        yield f"{serving} serves now. Compare this version with it before you take it."
    if record.selected is not None:
        yield from _advice_on_member(record.selected, matrix)
    elif record.member_count > 1:
        yield from _advice_on_selection(record.subject, matrix, ways)
    better = [c for c in matrix.conditions if _gain(matrix, CLASSICAL, record.subject, c) > CLEAR]
    if better:
        yield _advice_on_classical(record.subject, matrix, better)
    yield "For frames unlike these conditions, its F1 is not known: ask with the command below."


def _advice_on_classical(subject: int, matrix: Matrix, better: Sequence[str]) -> str:
    """Say where a detector without a network is better, and whether a member beats it there."""
    if subject != ENSEMBLE:
        return f"A classical detector, without a network, is better on {_named(better)}."
    best = {name: matrix.best(name) for name in better}
    is_beaten = all(
        one is not None and _gain(matrix, one, CLASSICAL, name) > 0 for name, one in best.items()
    )
    more = "; the best member is better still" if is_beaten else ""
    return (
        "A classical detector, without a network, is better than all members together on "
        f"{_named(better)}{more}."
    )


def _advice_on_member(member: int, matrix: Matrix) -> Iterable[str]:
    won = [name for name in matrix.conditions if matrix.best(name) == member]
    if not won:
        yield "No condition has this member as its best. Take the whole ensemble."
    else:
        yield f"It is the best member on {_named(won)}. Elsewhere take the whole ensemble."


def _advice_on_selection(subject: int, matrix: Matrix, ways: Ways) -> Iterable[str]:
    """Say whether selection is better than all together, as measured or as members suggest."""
    selected, together = ways.f1_of(SELECTED), ways.f1_of(ENSEMBLE)
    if selected is not None and together is not None:
        yield _advice_measured(selected, together)
        return
    gains = {
        name: _gain(matrix, best, subject, name)
        for name in matrix.conditions
        if (best := matrix.best(name)) is not None
    }
    clear = [name for name, gain in gains.items() if gain > CLEAR]
    if not gains:
        return
    if not clear:
        yield "Take all members together: nowhere is a single member clearly better."
        return
    most = max(clear, key=lambda name: gains[name])
    best = matrix.best(most)
    yield (
        f"Let Manybeam select members for each frame: on {len(clear)} of {len(gains)} conditions "
        f"one member is clearly better than all together, most on {most} (member {best:02d} "
        f"{_f1(matrix, best, most)}, all {_f1(matrix, subject, most)})."
    )


def _advice_measured(selected: float, together: float) -> str:
    both = f"mean F1 {selected:.2f}, all members together {together:.2f}"
    if selected - together > CLEAR:
        return f"Let Manybeam select members for each frame: {both}."
    if together - selected > CLEAR:
        return f"Take all members together: selection for each frame is worse here ({both})."
    return f"Selection for each frame and all members together are equally good here ({both})."


def _gain(matrix: Matrix, row: int, subject: int, condition: str) -> float:
    """Return how much higher the F1 of one row is than that of the version; -1 if unknown."""
    one, other = matrix.value(row, condition), matrix.value(subject, condition)
    return -1.0 if one is None or other is None else one - other


def _f1(matrix: Matrix, row: int | None, condition: str) -> str:
    value = None if row is None else matrix.value(row, condition)
    return "unknown" if value is None else f"{value:.2f}"


def _named(conditions: Sequence[str]) -> str:
    shown = ", ".join(conditions[:LISTED])
    more = len(conditions) - LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def _listed(words: Iterable[str]) -> str:
    """Return different words, the commonest first.

    Example:
        >>> _listed(["HAADF", "MAADF", "HAADF"])
        'HAADF and MAADF'
    """
    found = list(words)
    ranked = sorted(dict.fromkeys(found), key=lambda word: -found.count(word))
    return " and ".join(filter(None, [", ".join(ranked[:-1]), ranked[-1]])) if ranked else ""
