"""A member's threshold, moved to 0.5: where it finds atoms best on frames whose truth is known.

What a pixel loss calls a probability is not that of an atom: where an atom's place is uncertain no
pixel of it reaches 0.5, and where classes are weighted every speck does. Which threshold is best
is a property of loss, mask and policy, so it is measured once, after training, on frames of the
policy, and put into the network's last bias. Everything after it can take 0.5 for what it says.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.special import expit

from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import shifted
from manybeam.learn.scoring.scores import f1_of, judge

Array = NDArray[np.floating]
Labelled = tuple[Array, Array, float | None]

LOGITS = np.linspace(-3, 3, 25)
TOLERANCE = 0.003  # thresholds whose F1 is this near the best one's are as good


def centred(member: Member, labelled: Iterable[Labelled]) -> Member:
    """Return the member with its last bias shifted, so that 0.5 is its best threshold.

    Args:
        member: as trained.
        labelled: (frame, truth, pixel size) of frames like those it learned from, but none of
            them: of those it is surer than of any others.

    Returns:
        The member itself where every threshold is as good, as on clean frames, or none is any.
    """
    logit = best_logit(member, labelled)
    return replace(member, weights=shifted(member.weights, -logit)) if logit else member


def best_logit(member: Member, labelled: Iterable[Labelled]) -> float:
    """Return the middle, in log-odds, of the run of thresholds around that of greatest F1."""
    ensemble = Ensemble([member])
    radius_pm = member.recipe.tiles.mask_radius_pm
    counts_t3 = np.zeros((len(LOGITS), 3), np.int64)
    for frame_yx, truth, pixel_size_pm in labelled:
        shape = (frame_yx.shape[0], frame_yx.shape[1])
        atoms = ensemble.predict(frame_yx, pixel_size_pm, threshold=float(expit(LOGITS[0]))).atoms
        for place, least in enumerate(expit(LOGITS)):
            likely = atoms[atoms[:, 3] >= least]
            counts_t3[place] += judge(likely, truth, pixel_size_pm, shape, radius_pm).counts
    f1_t = f1_of(counts_t3)
    if not f1_t.max(initial=0.0) > 0:
        return 0.0
    run_t, _ = label(f1_t >= f1_t.max() - TOLERANCE)
    return float(np.mean(LOGITS[run_t == run_t[f1_t.argmax()]]))
