"""The reasons of a selection, in the words of a microscopist."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from manybeam.predictor.condition_distance import Near
from manybeam.predictor.f1.predicted import PredictedF1
from manybeam.spec import Policy, Range

WORTH_A_WORD = 0.05  # gain in predicted F1 from which other members are proposed
# Quantities that are named when a policy does not cover them: path -> (name, unit).
WORDS: Mapping[str, tuple[str, str]] = {
    "scan.pixel_size_pm": ("pixel size", "pm"),
    "dose_e_per_a2": ("dose", "e/A^2"),
    "optics.beam_kv": ("acceleration voltage", "kV"),
    "optics.convergence_mrad": ("convergence", "mrad"),
    "optics.defocus_nm": ("defocus", "nm"),
    "optics.source_fwhm_pm": ("source size", "pm"),
    "scan.row_jitter_pm": ("row jitter", "pm"),
    "state.contamination": ("contamination", "of an atom's peak"),
    "detector.afterglow_px": ("afterglow", "px"),
}


@dataclass(frozen=True)
class Outlook:
    """The predicted F1 of one member on a frame, with its parts."""

    member: int
    predicted_f1: float
    low: float
    high: float
    components: Mapping[str, float]
    explained: float


def candidate_reason(
    one: Outlook,
    policies: Mapping[int, tuple[str, Policy | None]],
    stated: Mapping[str, float],
) -> list[str]:
    """Return the reasons for the predicted F1 of one member, a short sentence each."""
    said = []
    if "matrix" in one.components:
        is_placed = "distance" in one.components  # else it is the mean over all conditions
        where = "conditions like this" if is_placed else "all conditions"
        said.append(f"measured F1 {one.components['matrix']:.2f} on {where}")
    if "simulated" in one.components:
        said.append(f"F1 {one.components['simulated']:.2f} on simulated frames that look like it")
    said.append(f"its atoms, drawn again, explain {100 * one.explained:.0f} % of the frame")
    if "lattice" in one.components:
        said.append(f"lattice {100 * one.components['lattice']:.0f} % regular")
    said.extend(_outside(policies.get(one.member), stated))
    return said


def selection_reasons(
    ranked: Sequence[Outlook],
    chosen: tuple[int, ...],
    policies: Mapping[int, tuple[str, Policy | None]],
    near: Near,
    stated: Mapping[str, float],
) -> list[str]:
    """Return why these members were chosen and others were not, a sentence each."""
    best = ranked[0]
    said = [
        f"best: {_called(best.member, policies)}, predicted F1 {best.predicted_f1:.2f} "
        f"({best.low:.2f} to {best.high:.2f})"
    ]
    if len(chosen) > 1:
        peers = ", ".join(_called(member, policies) for member in chosen[1:4])
        more = f" and {len(chosen) - 4} more" if len(chosen) > 4 else ""
        is_calibrated = "simulated" in best.components
        said.append(f"{'with' if is_calibrated else 'equal within noise:'} {peers}{more}")
    said.extend(_contrast(ranked, policies, stated))
    said.append(f"its atoms, drawn again, explain {100 * best.explained:.0f} % of the frame")
    said.append(_place(near))
    return said


def answer_reason(
    members: Sequence[int],
    policies: Mapping[int, tuple[str, Policy | None]],
    near: Near,
    predicted: PredictedF1 | None,
    better: tuple[Sequence[int], PredictedF1] | None = None,
) -> list[str]:
    """Return the facts of an answer whose members the caller named, a sentence each.

    Args:
        members: the members that answer.
        policies: policy of each member of the version.
        near: place of the frame among the measured conditions.
        predicted: predicted F1 of this answer, if it is known.
        better: the members that selection would choose, with their predicted F1.
    """
    who = "all members answer, as asked"
    if len(members) < len(policies):
        who = f"{', '.join(_called(member, policies) for member in members[:4])} answer, as asked"
    said = [who]
    if predicted is not None:
        said.append(
            f"predicted F1 {predicted.f1:.2f} ({predicted.low:.2f} to {predicted.high:.2f})"
        )
    if better and predicted is not None and better[1].f1 >= predicted.f1 + WORTH_A_WORD:
        names = ", ".join(_called(member, policies) for member in better[0][:4])
        said.append(f"selection would choose {names}: predicted F1 {better[1].f1:.2f}")
    said.append(_place(near))
    return said


def _called(member: int, policies: Mapping[int, tuple[str, Policy | None]]) -> str:
    name = policies.get(member, ("", None))[0]
    return f"member {member:02d} ({name})" if name else f"member {member:02d}"


def _contrast(
    ranked: Sequence[Outlook],
    policies: Mapping[int, tuple[str, Policy | None]],
    stated: Mapping[str, float],
) -> list[str]:
    """Return a quantity that the best member's policy covers and a lower member's does not."""
    best_name, best_policy = policies.get(ranked[0].member, ("", None))
    if best_policy is None:
        return []
    ours = _outside((best_name, best_policy), stated)
    for one in reversed(ranked[1:]):
        name, policy = policies.get(one.member, ("", None))
        theirs = _outside((name, policy), stated)
        if theirs and name != best_name and len(theirs) > len(ours):
            return [theirs[0], f"{best_name!r} covers it" if not ours else ours[0]]
    return ours[:1]


def _outside(named: tuple[str, Policy | None] | None, stated: Mapping[str, float]) -> list[str]:
    """Return one sentence for each known quantity outside the range of a policy."""
    name, policy = named or ("", None)
    if policy is None:
        return []
    said = []
    for path, value in policy.quantities():
        if path not in WORDS or path not in stated or value is None:
            continue
        ends = (value.low, value.high) if isinstance(value, Range) else (value, value)
        if not ends[0] * 0.98 - 1e-9 <= stated[path] <= ends[1] * 1.02 + 1e-9:
            word, unit = WORDS[path]
            seen = f"{ends[0]:g}" if ends[0] == ends[1] else f"{ends[0]:g} to {ends[1]:g}"
            said.append(f"{word} {stated[path]:.3g} {unit} is outside what {name!r} saw ({seen})")
    return said


def _place(near: Near) -> str:
    """Return the place of the frame among the measured conditions."""
    if math.isinf(near.distance):
        return "no measured condition can be compared with the frame" + (
            ": set MANYBEAM_ZOO to the library that holds them" if near.weights else ""
        )
    return (
        f"nearest measured condition: {near.ranked[0][0]!r}, distance {near.distance:.1f} "
        "(1 is the scatter within one condition)"
    )
