"""The band-pass network, a member that is fitted on labelled frames in seconds, not trained.

Axis letters: n frame, k candidate.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from manybeam.data.tiles import normalise, rescale
from manybeam.errors import InvalidInput
from manybeam.learn.nets.bandpass import BandPass
from manybeam.learn.nets.member import Member
from manybeam.learn.scoring import classical
from manybeam.learn.scoring.calibration import fit
from manybeam.learn.training.threshold import Labelled
from manybeam.spec.recipe import MemberPlan, Recipe, TileSpec

Array = NDArray[np.floating]
WINDOWS_PM = (400, 800)  # widths of local standardisation that are tried
MOST_FRAMES = 48  # that are used; more change the numbers little


def fit_bandpass(
    recipe: Recipe, plan: MemberPlan, index: int, labelled: Sequence[Labelled], data_digest: str
) -> Member:
    """Return the member that is best on labelled frames.

    Widths are found by search, temperature and shift by likelihood.

    Args:
        recipe: its `tiles` say how frames are scaled; its `training` has no effect here.
        plan: the seed chooses frames if there are many.
        index: number of the member in its ensemble.
        labelled: frames, true atoms and pixel sizes.
        data_digest: of the frames; it is recorded.

    Raises:
        InvalidInput: no frames, or no maximum on any of them.
        InvalidSpec: the recipe distinguishes kinds of atom.
    """
    start, size_pm = time.monotonic(), recipe.tiles.pixel_size_pm
    network = BandPass(recipe.network)
    drawn = np.random.default_rng(plan.seed).permutation(len(labelled))[:MOST_FRAMES]
    seen = [_seen(labelled[n], recipe.tiles) for n in np.sort(drawn)]
    frames, truths = [frame for frame, _ in seen], [truth for _, truth in seen]
    radius_pm = recipe.tiles.mask_radius_pm
    sizes = [size_pm] * len(seen)
    blob, _ = classical.tune(frames, truths, sizes, radius_pm, locals_pm=WINDOWS_PM)
    heights = [classical.heights(*one, size_pm, radius_pm, blob) for one in seen]
    height_k, is_true_k = (np.concatenate(column) for column in zip(*heights, strict=True))
    if not len(height_k):
        raise InvalidInput(
            "these frames show no maxima", "the fit needs atoms", "give frames that show atoms"
        )
    temperature, shift = fit(expit(height_k - blob.threshold), is_true_k)
    odds_k = (height_k - blob.threshold) / temperature + shift
    weights = {
        **network.state_dict(),
        "width_px": torch.tensor(blob.sigma_pm / size_pm),
        "ratio": torch.tensor(blob.ratio),
        "window_px": torch.tensor(blob.local_pm / size_pm),
        "head.weight": torch.full((1, 1, 1, 1), 1 / temperature),
        "head.bias": torch.tensor([shift - blob.threshold / temperature]),
    }
    loss = float((np.logaddexp(0, odds_k) - is_true_k * odds_k).mean())
    return Member(
        index=index,
        seed=plan.seed,
        policy=plan.policy,
        recipe=recipe,
        weights={key: value.to(torch.float32) for key, value in weights.items()},
        losses=(loss,),
        wall_s=time.monotonic() - start,
        data_digest=data_digest,
    )


def _seen(labelled: Labelled, spec: TileSpec) -> tuple[Array, Array]:
    """Return a frame as a member sees it, and the positions of its atoms there."""
    frame_yx, truth, pixel_size_pm = labelled
    own_yx, scale = frame_yx, 1.0
    if pixel_size_pm is not None:
        own_yx, scale = rescale(frame_yx, pixel_size_pm, spec.pixel_size_pm)
    place_n2 = (np.asarray(truth, float)[:, :2] + 0.5) * scale - 0.5
    return normalise(own_yx, spec.normalise, spec.local_nm * 1000 / spec.pixel_size_pm), place_n2
