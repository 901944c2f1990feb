"""The cost of a whole answer and of a selection, by number of members and side of the frame.

    python tests/benchmarks/select_cost.py --home HOME --ref graphene

HOME is the folder of a platform whose REF was calibrated. If more members are asked for than it
has, the others are copies with 2 % of noise on each weight; the calibration set gets their columns
in the same way. So they cost what members cost, but say nothing about F1. Frames are simulated. One
question is asked at a time, in one process, on all cores that it may use, as in a replica.

`quick` is an answer of all members without frame analysis, `answer` one with it, and `selection`
ranks all members, for which the networks run on the middle of the frame. Given is the median in
seconds; of the last, also what networks and atoms took before the analysis.
"""

import argparse
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

MEMBERS = (1, 2, 4, 8, 16, 20, 32, 64)
SIDES = (256, 512, 1024, 2048, 4096)
CHANGE = 0.02  # of each weight of a copy
LONG_S = 5.0  # what takes longer is asked once after the first time
GOAL = (20, 1024, 2.0)  # members, side, seconds of a selection


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--ref", default="graphene")
    parser.add_argument("--members", type=int, nargs="*", default=MEMBERS)
    parser.add_argument("--sides", type=int, nargs="*", default=SIDES)
    parser.add_argument("--condition", default="graphene-60kv-nominal")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    os.environ["MANYBEAM_HOME"] = str(given.home)
    from manybeam.learn.nets.inference.runtime import cores
    from manybeam.predictor.answer import Question
    from manybeam.predictor.predictor import Predictor

    print(f"{platform.processor() or platform.machine()}, {cores()} cores")
    print("| members | side px | atoms | quick s | answer s | selection s | of it networks s |")
    print("|---" * 7 + "|")
    quick, whole = Question(given.ref, is_quick=True), Question(given.ref)
    select = Question(given.ref, is_selecting=True)
    for count, versions in made(given.ref, given.members):
        predictor = Predictor(versions)
        for side in given.sides:
            frame = simulated(given.condition, side)
            quick_s, _, atoms = measured(predictor.answer, frame, quick, given.rounds)
            answer_s, _, _ = measured(predictor.answer, frame, whole, given.rounds)
            select_s, networks_s, _ = measured(predictor.rank, frame, select, given.rounds)
            row = (count, side, atoms, quick_s, answer_s, select_s, networks_s)
            print(f"| {' | '.join(map(str, row))} |{goal(count, side, select_s)}", flush=True)


def goal(count: int, side: int, seconds: str) -> str:
    """Return what is said beside the row that has a goal."""
    members, wanted, limit_s = GOAL
    if (count, side) != (members, wanted):
        return ""
    return f" goal {limit_s:g}: {'kept' if float(seconds) <= limit_s else 'MISSED'}"


def made(ref: str, counts: list[int]) -> Iterator[tuple[int, Any]]:
    """Yield a source of versions with each number of members."""
    from manybeam.learn.analysis.calibration_set import CalibrationSet
    from manybeam.learn.nets.ensemble import Ensemble
    from manybeam.learn.nets.inference.graphs import Graphs
    from manybeam.predictor.performance import PerformancePredictor
    from manybeam.predictor.versions.loaded import LoadedVersion, OneVersion
    from manybeam.zoo.calibration_sets import KIND
    from manybeam.zoo.registry import Zoo

    zoo = Zoo()
    content = zoo.attached(ref, KIND)
    assert content is not None, f"{ref} was not calibrated"
    base, table = zoo.members(ref), CalibrationSet.from_bytes(content)
    for count in counts:
        members = [copied(base[place % len(base)], place, len(base)) for place in range(count)]
        known = PerformancePredictor(widened(table, count))
        known.prepare()
        ensemble = Ensemble(members, graphs=Graphs.here())
        yield count, OneVersion(LoadedVersion(ensemble, zoo.matrix(ref), known))


def copied(member: Any, place: int, own: int) -> Any:
    """Return a member, with noise on its weights if its place is beyond those there are."""
    import torch

    if place < own:
        return replace(member, index=place)
    torch.manual_seed(place)
    weights = {
        name: tensor * (1 + CHANGE * torch.randn_like(tensor))
        if tensor.is_floating_point() and tensor.ndim > 1
        else tensor
        for name, tensor in sorted(member.weights.items())  # not in the order of a file
    }
    return replace(member, index=place, weights=weights)


def widened(table: Any, count: int) -> Any:
    """Return a calibration set of so many members; the columns of copies are those of the copied.

    They get some noise, as equal columns would be easier to learn from.
    """
    places, rng = np.arange(count) % len(table.members), np.random.default_rng(0)
    scores = table.score_nmf[:, places]
    noise = rng.normal(0, 0.01, scores.shape) * (np.arange(count) >= len(table.members))[:, None]
    return replace(
        table,
        members=tuple(range(count)),
        score_nmf=(scores + noise).clip(0, 1),
        count_nm3=table.count_nm3[:, places],
        belief_km=table.belief_km[:, places],
    )


def simulated(name: str, side: int) -> Any:
    """Return a simulated frame."""
    from manybeam.data.io.frame import Frame
    from manybeam.data.simulation.simulate import simulate
    from manybeam.spec.facility import facility_library

    made = simulate(facility_library().condition(name), 1, seed=99_001, shape=(side, side))
    return Frame(made.frames_nyx[0], pixel_size_pm=float(made.pixel_size_pm[0]))


def measured(ask: Any, frame: Any, question: Any, rounds: int) -> tuple[str, str, str]:
    """Return median seconds, those of the networks on the frame, and the number of atoms."""
    from manybeam.errors import TooLarge
    from manybeam.predictor.deadline import Deadline

    taken: list[float] = []
    networks, atoms = [], ""
    while len(taken) < (2 if taken and taken[0] > LONG_S else rounds + 1):
        deadline, begun = Deadline(), time.perf_counter()
        try:
            found = ask(frame, question, deadline)
        except TooLarge:
            return "too large", "", ""
        taken.append(time.perf_counter() - begun)
        networks.append(deadline.seconds["predict"])
        atoms = "" if isinstance(found, list) else str(len(found.atoms))
    return f"{np.median(taken[1:]):.3f}", f"{np.median(networks[1:]):.3f}", atoms


if __name__ == "__main__":
    main()
