"""The best threshold of a member, measured on frames with known truth and moved to 0.5.

The probability of a pixel is not that of an atom. If the position of an atom is uncertain, none of
its pixels reaches 0.5; if classes are weighted, every spot does. The best threshold depends on the
loss, the mask and the policy. It is measured once after training, on frames of the policy, and put
into the last bias of the network. After that, 0.5 is the threshold everywhere.
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
from manybeam.learn.scoring.scores import f1_of, match_frame

Array = NDArray[np.floating]
Labelled = tuple[Array, Array, float | None]

LOGITS = np.linspace(-3, 7, 41)
USUAL = LOGITS <= 3  # those beyond count only if they are better, as for a bold member
TOLERANCE = 0.003  # thresholds with F1 this near to the best are equally good


def centred(member: Member, labelled: Iterable[Labelled]) -> Member:
    """Return the member with its last bias shifted, so that 0.5 is its best threshold.

    Args:
        member: as trained.
        labelled: (frame, truth, pixel size) of frames like those of its training, but other ones,
            because a member is more confident on the frames of its training.

    Returns:
        The member itself if all thresholds are equally good, as on clean frames, or all are bad.
    """
    logit = best_logit(member, labelled)
    return replace(member, weights=shifted(member.weights, -logit)) if logit else member


def best_logit(member: Member, labelled: Iterable[Labelled]) -> float:
    """Return the middle, in log-odds, of the best thresholds around that of greatest F1.

    Those from -3 to 3 are preferred, because on clean frames high ones are as good as 0.5.
    """
    ensemble = Ensemble([member])
    radius_pm = member.recipe.tiles.mask_radius_pm
    counts_t3 = np.zeros((len(LOGITS), 3), np.int64)
    for frame_yx, truth, pixel_size_pm in labelled:
        shape = (frame_yx.shape[0], frame_yx.shape[1])
        atoms = ensemble.predict(frame_yx, pixel_size_pm, threshold=float(expit(LOGITS[0]))).atoms
        is_likely_tn = atoms[:, 3] >= expit(LOGITS)[:, None]
        left_t = is_likely_tn.sum(axis=1)
        for left in np.unique(left_t):  # thresholds that leave the same atoms are counted once
            likely = atoms[is_likely_tn[left_t == left][0]]
            match = match_frame(likely, truth, pixel_size_pm, shape, radius_pm)
            counts_t3[left_t == left] += match.counts
    f1_t = f1_of(counts_t3)
    if f1_t[USUAL].max() >= f1_t.max() - TOLERANCE:
        f1_t = f1_t[USUAL]
    if not f1_t.max(initial=0.0) > 0:
        return 0.0
    run_t, _ = label(f1_t >= f1_t.max() - TOLERANCE)
    return float(np.mean(LOGITS[: len(f1_t)][run_t == run_t[f1_t.argmax()]]))
