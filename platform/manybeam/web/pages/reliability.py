"""The reliability of the probabilities of an ensemble: its curve, as picture and table."""

import hashlib
from dataclasses import dataclass
from urllib.parse import urlencode

from fastapi import Response

from manybeam.errors import NotFound
from manybeam.web.render import page_of
from manybeam.web.state import AppState
from manybeam.web.version_cache import CachedVersion
from manybeam.zoo.matrix import Bin, calibration_error

# A drawing contains its style, and no script.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Curve:
    """The curve of one condition, or of all measured conditions.

    Attributes:
        condition: the condition; "" for all together.
        conditions: conditions that can be chosen.
        bins: mean probability, share of true atoms and count, without empty bins.
        error: expected calibration error; None if it was not measured.
        picture: address of the drawing; it changes with the numbers, so that it may be cached.
    """

    condition: str
    conditions: tuple[str, ...]
    bins: tuple[Bin, ...]
    error: float | None
    picture: str

    @property
    def atom_count(self) -> int:
        """How many atoms were found and compared with the truth."""
        return sum(count for _, _, count in self.bins)


def make_curve(cached: CachedVersion, condition: str = "") -> Curve:
    """Return the curve of the ensemble of a version.

    Raises:
        NotFound: the version was not measured on this condition.
    """
    matrix = cached.matrix
    if condition and condition not in matrix.conditions:
        raise NotFound(
            f"{cached.record.ref} was not measured on {condition[:100]!r}",
            f"measured conditions: {', '.join(matrix.conditions) or 'none'}",
            "choose one of these",
        )
    bins = matrix.reliability(condition or None)
    state = hashlib.sha256(repr(bins).encode()).hexdigest()[:12]
    query = {"condition": condition} if condition else {}
    path = f"{page_of(cached.record.version_ref)}/reliability.svg"
    filled = tuple(one for one in bins if one[2])
    known = tuple(one for one in matrix.conditions if matrix.reliability(one))
    address = f"{path}?{urlencode({**query, 'state': state})}"
    return Curve(condition, known, filled, calibration_error(bins), address)


def reliability_picture(app_state: AppState, ref: str, condition: str = "") -> Response:
    """Return the drawing of a curve as SVG; without a curve it says "not measured"."""
    from manybeam.zoo.reports.plots import drawn, reliability_figure

    cached = app_state.version_cache.look(ref)
    make_curve(cached, condition)
    picture = drawn(reliability_figure(cached.matrix, condition or None), "svg")
    headers = {"content-security-policy": POLICY, "cache-control": "max-age=3600"}
    return Response(picture, media_type="image/svg+xml", headers=headers)
