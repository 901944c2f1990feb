"""Calibrating an ensemble: its members are measured on frames simulated under many conditions.

The result is the calibration set, from which selection predicts the F1 of each member on a frame
(`learn.analysis.calibration_set`, `predictor.performance`). Rows are independent tasks for the
cluster. Finished rows are kept until all are finished, so that a calibration that was stopped
can be continued.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

from manybeam import __version__
from manybeam.cluster import joining as cluster
from manybeam.data.simulation import SIMULATOR
from manybeam.errors import InvalidInput
from manybeam.jobs.run import TRAINING, digest_of
from manybeam.jobs.scratch import Scratch
from manybeam.learn.analysis.calibration_set import CalibrationSet, measure_calibration_set
from manybeam.learn.analysis.precision import FRAMES, PrecisionGate, measure_precision
from manybeam.learn.analysis.precision import KIND as PRECISION
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.inference.engine import compile_ahead
from manybeam.learn.nets.inference.graphs import Graphs
from manybeam.learn.nets.member import Member
from manybeam.spec import Library, Policy, Range

if TYPE_CHECKING:
    from manybeam.zoo.records import Record
    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)

BLOCK = 20  # rows in one task
SEED = 50_007  # added to the job's seed: far from the seeds of training and test frames

Progress = Callable[[int, int], None]


def calibrate_ensemble(
    zoo: "Zoo",
    ref: str,
    library: Library,
    *,
    policies: Sequence[str] = (),
    frame_count: int = 600,
    seed: int = 0,
    progress: Progress | None = None,
    executor: Literal["ray", "local"] = "ray",
) -> "Record":
    """Measure the calibration set of a version, attach it to the version, return the record.

    Args:
        zoo: the zoo of the version.
        ref: the version.
        library: where policies are looked up.
        policies: ids of policies from which conditions are drawn. If left out, half of the frames
            come from the policies the members were trained under, and half from the broadest
            policy of their structure: selection must also know conditions beyond the training.
        frame_count: rows of the calibration set; a few hundred.
        seed: seed of all rows.
        progress: called with (rows done, rows).
        executor: "ray" divides the work over the cluster; "local" does it in this process.

    Raises:
        UnknownRef: there is no such version.
        InvalidInput: the library has no policy of the structure, `frame_count` is below 1, or
            the reference means one member.
    """
    from manybeam.zoo.calibration_sets import record_calibration_set
    from manybeam.zoo.lifecycle.noted import CALIBRATED, note

    record = zoo.resolve(ref)
    _check(record, frame_count)
    drawn = [library.policy(name) for name in policies] or usual_policies(record, library)
    zoo.check_writable(record.name)
    spans = [(a, min(a + BLOCK, frame_count)) for a in range(0, frame_count, BLOCK)]
    scratch = Scratch(_digest(record, drawn, seed), "calibrations", CalibrationSet.from_bytes)
    kept = {span: scratch.get(_key(span)) for span in spans}
    parts = {span: CalibrationSet.from_bytes(data) for span, data in kept.items() if data}
    missing = [span for span in spans if span not in parts]
    members = zoo.members(record.ref) if missing else []
    for place, part in _results(members, drawn, missing, SEED + seed, executor):
        parts[missing[place]] = part
        scratch.put(_key(missing[place]), part.to_bytes())
        if progress:
            progress(sum(map(len, parts.values())), frame_count)
    table = CalibrationSet.joined([parts[span] for span in spans])
    record_calibration_set(zoo, record.ref, table, tuple(dict.fromkeys(one.id for one in drawn)))
    _record_precision(zoo, record, drawn, min(FRAMES, len(table)), seed)
    note(CALIBRATED, record.ref, frames=len(table), policies=sorted({one.id for one in drawn}))
    scratch.clear()
    return record


def _record_precision(
    zoo: "Zoo", record: "Record", policies: Sequence[Policy], frame_count: int, seed: int
) -> None:
    """Measure whether the version may answer in bfloat16; a CPU without it leaves this open."""
    members, own_seed = zoo.members(record.ref), 2 * SEED + seed
    gate = measure_precision(
        members, policies, Graphs.here(), seed=own_seed, frame_count=frame_count
    )
    if gate is None and zoo.attached(record.ref, PRECISION) is None:
        return
    gate = gate or PrecisionGate.unmeasured()  # in place of that of an earlier calibration
    logger.info("%s: %s", record.ref, gate)
    zoo.attach(record.ref, PRECISION, gate.to_bytes(), {"verdict": str(gate)})


def _digest(record: "Record", policies: Sequence[Policy], seed: int) -> str:
    """Return the digest of all inputs that decide the rows."""
    drawn = [(one.id, one.digest) for one in policies]
    versions = [__version__, SIMULATOR, TRAINING]
    return digest_of({"versions": versions, "of": record.sha256, "from": drawn, "seed": seed})


def _key(span: tuple[int, int]) -> str:
    return f"rows-{span[0]:05d}-{span[1]:05d}"


def _check(record: "Record", frame_count: int) -> None:
    if record.selected is not None:
        raise InvalidInput(
            f"member {record.selected:02d} of {record.ref} cannot be calibrated alone",
            "a calibration set belongs to a whole version",
            f"manybeam calibrate {record.version_ref}",
        )
    if frame_count < 1:
        raise InvalidInput(
            f"{frame_count} frames to calibrate with", "at least 1 is needed", "--frames 600"
        )


def usual_policies(record: "Record", library: Library) -> list[Policy]:
    """Return the policies of a version's members, each followed by the broadest of its structure.

    Raises:
        InvalidInput: the library has none of these policies.
    """
    names = dict.fromkeys(member.policy for member in record.members)
    own = [library.policies[name] for name in names if name in library.policies]
    if not own:
        raise InvalidInput(
            f"no policy to calibrate {record.ref} with",
            f"its members were trained under {', '.join(names)}; the library has none of these",
            "add --policy POLICY, or set MANYBEAM_ZOO to the library of these policies",
        )
    structure = own[0].sample.structure
    same = [one for one in library.policies.values() if one.sample.structure == structure]
    broadest = min(same, key=lambda one: (-_reach(one), one.id))
    return [policy for one in own for policy in (one, broadest)]


def _reach(policy: Policy) -> float:
    """Return how broad a policy is: the number of its ranges, then their relative widths."""
    ranges = [value for _, value in policy.quantities() if isinstance(value, Range)]
    widths = [(r.high - r.low) / max(abs(r.high), abs(r.low), 1e-9) for r in ranges]
    return len(ranges) + sum(widths) / 1e3


def _results(
    members: Sequence[Member],
    policies: Sequence[Policy],
    spans: Sequence[tuple[int, int]],
    seed: int,
    executor: str,
) -> Iterator[tuple[int, CalibrationSet]]:
    if not spans:
        return
    if executor == "local":
        ensemble = Ensemble(members, graphs=Graphs.here())
        for place, (start, stop) in enumerate(spans):
            yield place, measure_calibration_set(ensemble, policies, start, stop, seed=seed)
        return
    cluster.connect()
    compile_ahead(members)
    shared = cluster.share(tuple(members))
    yield from cluster.each(
        [partial(_measure_on_worker, shared, tuple(policies), span, seed) for span in spans]
    )


def _measure_on_worker(
    shared: cluster.Shared, policies: Sequence[Policy], span: tuple[int, int], seed: int
) -> CalibrationSet:
    return measure_calibration_set(_ensemble(shared), policies, *span, seed=seed)


@lru_cache(maxsize=1)
def _ensemble(shared: cluster.Shared) -> Ensemble:
    """Return the ensemble; each worker builds it once."""
    return Ensemble(shared.value(), graphs=Graphs.here())
