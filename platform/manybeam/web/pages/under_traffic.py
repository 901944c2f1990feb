"""A version under traffic, for its page: how it and another one answered the same frames."""

from dataclasses import dataclass

from manybeam.db.deployment import open_database
from manybeam.db.serving.comparison import Compared
from manybeam.db.serving.rollouts import Rollouts
from manybeam.errors import ManybeamError
from manybeam.zoo.records import Record

LISTED = 3  # rollouts on a page: a shadow is still read while its canary runs


@dataclass(frozen=True)
class UnderTraffic:
    """The newest shadows and canaries in which a version takes part.

    Attributes:
        compared: each with the comparison so far, the newest first.
        trouble: why they are not known; "" if they are.
    """

    compared: tuple[Compared, ...] = ()
    trouble: str = ""

    @classmethod
    def of(cls, record: Record) -> "UnderTraffic":
        """Return those of a version; its page goes on while the database is away."""
        ref = record.version_ref
        try:
            rollouts = Rollouts(open_database())
            found = [one for one in rollouts.list(record.name) if ref in (one.ref, one.base)]
            return cls(
                tuple(Compared.of(one, rollouts.comparisons(one.id)) for one in found[:LISTED])
            )
        except ManybeamError as error:
            return cls(trouble=error.what)
