"""learn.analysis.precision: bfloat16 only where a version's answers hardly change by it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.errors import Corrupt
from manybeam.jobs.calibrate import calibrate_ensemble
from manybeam.learn.analysis.precision import KIND, PrecisionGate, measure_precision
from manybeam.learn.nets.inference.graphs import Graphs
from manybeam.learn.nets.inference.runtime import has_bf16
from manybeam.spec import Library
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.usefixtures("one_thread")

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
POLICIES = [LIBRARY.policy("graphene-nominal")]
PASSED = PrecisionGate(frames=24, mean=0.006, std=0.008, f1=0.0, ece=0.0)
needs_bf16 = pytest.mark.skipif(
    not has_bf16(), reason="this CPU has no bfloat16; the gate itself is tested without"
)


@pytest.mark.parametrize("worse", ["mean", "std", "f1", "ece"])
def test_each_change_has_its_limit(worse: str) -> None:
    assert PASSED.is_passed
    assert "may be used" in str(PASSED)
    refused = replace(PASSED, **{worse: 0.011})
    assert not refused.is_passed
    assert "is refused" in str(refused)


def test_a_gate_comes_back_from_its_bytes_and_nothing_else_does() -> None:
    assert PrecisionGate.from_bytes(PASSED.to_bytes()) == PASSED
    for content in (b"", b"[]", b'{"frames": 3}', b"\xff"):
        with pytest.raises(Corrupt, match="reduced precision"):
            PrecisionGate.from_bytes(content)


@needs_bf16
def test_changes_are_measured_against_float32(
    tiny_members: Callable[[int], list[Any]], tmp_path: Path
) -> None:
    gate = measure_precision(tiny_members(2), POLICIES, Graphs(tmp_path), seed=1, frame_count=3)
    assert gate is not None
    assert 0 < gate.mean < 0.1
    assert 0 < gate.std < 0.1


@needs_bf16
@pytest.mark.parametrize(
    ("gate", "is_reduced"), [(PASSED, True), (replace(PASSED, mean=0.02), False), (None, False)]
)
def test_a_version_answers_in_bfloat16_only_if_it_passed_and_the_settings_want_it(
    embedded: Zoo,
    tiny_members: Callable[[int], list[Any]],
    use_settings: Callable[[dict[str, str]], None],
    gate: PrecisionGate | None,
    *,
    is_reduced: bool,
) -> None:
    record = embedded.register("graphene", tiny_members(2), job={})
    if gate is not None:
        embedded.attach(record.ref, KIND, gate.to_bytes(), {})
    exact = embedded.ensemble(record.ref)
    assert not exact.is_reduced
    use_settings({"MANYBEAM_REDUCED_PRECISION": "true"})
    found = embedded.ensemble(record.ref)
    assert found.is_reduced == is_reduced
    frame = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    change = np.abs(found.predict(frame, None).mean_yx - exact.predict(frame, None).mean_yx).max()
    assert (change > 0) == is_reduced


@needs_bf16
def test_a_calibration_records_the_gate(
    embedded: Zoo, tiny_members: Callable[[int], list[Any]]
) -> None:
    record = embedded.register("graphene", tiny_members(2), job={})
    names = [POLICIES[0].id]
    calibrate_ensemble(
        embedded, record.ref, LIBRARY, policies=names, frame_count=4, executor="local"
    )
    content = embedded.attached(record.ref, KIND)
    assert content is not None
    assert PrecisionGate.from_bytes(content).frames == 4
