"""What an answer adds to the sums of a rollout; `db.serving.comparison` says what they mean."""

import math

from manybeam.db.serving.comparison import RATIO, Sums
from manybeam.errors import MissingPixelSize
from manybeam.learn.scoring.scores import match_frame
from manybeam.predictor.answer import Answer


def answered(answer: Answer) -> Sums:
    """Return what one answer of one version adds: its members, drift and predicted F1."""
    known = answer.predicted_f1
    sums: Sums = {"frames": 1, "members": len(answer.members), "atoms": len(answer.atoms)}
    if answer.is_drifted is not None:
        sums |= {"judged": 1, "drifted": int(answer.is_drifted)}
    if known is not None:
        sums |= {"predicted": 1, "predicted_f1": float(known.f1)}
    return sums


def took(seconds: float) -> Sums:
    """Return what the time of one answer adds."""
    bucket = math.floor(math.log(max(seconds, 1e-6) * 1000, RATIO))
    return {"ms": {str(bucket): 1}}


def agreement(base: Answer, new: Answer) -> Sums:
    """Return what the atoms of two answers for one frame add.

    They are matched as found atoms are matched with the truth: one to one, within the radius used
    for scores, and atoms at the edges do not count. Nothing is added if there is no such radius.
    """
    shape = base.frame.pixels_yx.shape
    try:
        matched = match_frame(new.atoms, base.atoms, base.frame.pixel_size_pm, (shape[0], shape[1]))
    except MissingPixelSize:
        return {}
    agreed, only_new, only_base = matched.counts
    sums: Sums = {"frames": 1, "agreed": agreed, "only_base": only_base, "only_new": only_new}
    if base.frame.pixel_size_pm is not None:
        sums |= {"pairs": len(matched.square_pm), "square_pm": float(matched.square_pm.sum())}
    return sums
