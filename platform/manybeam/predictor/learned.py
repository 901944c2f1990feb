"""The performance predictor of a version, from its calibration set and people's preferences."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from manybeam.db.preference import Preference
from manybeam.learn.analysis.calibration_set import CalibrationSet
from manybeam.learn.analysis.fitness import SCORES
from manybeam.predictor.performance import PerformancePredictor, PreferredMembers
from manybeam.predictor.preferences import preferences
from manybeam.zoo.cache import sha256_of
from manybeam.zoo.calibration_sets import KIND

if TYPE_CHECKING:
    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)


def performance_predictor(
    zoo: "Zoo", ref: str, *, with_preferences: bool = True
) -> PerformancePredictor | None:
    """Return the performance predictor of a version; None if it was never calibrated.

    For one member (`graphene@3/07`) it predicts that member only. If the calibration set has
    other members than the version, this is logged and None returned. The predictor is cached in
    this process until the set or the preferences change.

    Args:
        zoo: the zoo.
        ref: the version, or a member of it.
        with_preferences: whether it learns from people's preferences too. A measurement must not:
            a person may have chosen on one of its test frames, and have known the true atoms.

    Raises:
        UnknownRef: there is no such version.
        Corrupt: the calibration set is not the one that was recorded.
    """
    record = zoo.resolve(ref)
    content = zoo.attached(ref, KIND)
    if content is None:
        return None
    told = preferences(record.name) if with_preferences else ()
    made = [one for one in told if one.version == record.version]
    ids = tuple(one.id for one in made)
    known = _learnt(_Learned(sha256_of(content), record.selected, ids, content, tuple(made)))
    if set(known.table.members) != {member.index for member in record.members}:
        logger.warning("calibrated with other members", extra={"ref": record.ref})
        return None
    return known


@dataclass(frozen=True)
class _Learned:
    """The data of a predictor; equal if digest of the set, member and preferences are equal."""

    digest: str
    member: int | None
    preference_ids: tuple[str, ...]
    content: bytes = field(compare=False)
    preferences: tuple[Preference, ...] = field(compare=False)


@lru_cache(maxsize=8)
def _learnt(source: _Learned) -> PerformancePredictor:
    table = CalibrationSet.from_bytes(source.content)
    if source.member in table.members:
        table = table.only(source.member)
    taught = [_preferred(one, table) for one in source.preferences]
    return PerformancePredictor(table, [one for one in taught if one is not None])


def _preferred(one: Preference, table: CalibrationSet) -> PreferredMembers | None:
    """Return a preference as the predictor learns it; None if it does not concern these members."""
    here = set(table.members)
    if len(one.summary) != table.summary_ns.shape[1] or not here <= set(one.features):
        return None
    if not here & set(one.members):
        return None
    summary_s = np.array([np.nan if value is None else value for value in one.summary])
    score_mf = np.array([_scores(one.features[member]) for member in table.members])
    return PreferredMembers(summary_s, score_mf, one.members)


def _scores(features: Mapping[str, float]) -> list[float]:
    return [features.get(name, np.nan) for name in SCORES]
