"""A session that follows a moving condition, and members left out in haste: the F1 it costs.

    python tests/benchmarks/sessions.py --home HOME --ref graphene --out bench/sessions

HOME is the folder of a platform whose REF was calibrated. Streams of simulated frames move from one
condition to another, each wandering as sessions do. Every frame is answered by a session under
`auto`, which selects beside the frames, and by its rivals: all members, the members chosen by the
summary of each frame, full selection for each, and the best and the worst member by the truth.
The second table leaves members out: by the summary of the frame, by their mean score, at random.
Seeds are those of no calibration set, and chose no threshold.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SEED = 88_001
STREAMS = (
    ("graphene-60kv-nominal", "graphene-60kv-mix-c", "graphene-60kv-lowdose"),
    ("graphene-60kv-dirty", "graphene-60kv-coarse", "graphene-60kv-defocus"),
    ("graphene-60kv-scan", "graphene-60kv-mix-b", "graphene-60kv-verylowdose"),
    ("graphene-60kv-source", "graphene-60kv-16k", "graphene-60kv-detector"),
)
BLOCK = 5  # consecutive frames of one place of a condition that wanders
WAYS = ("session", "summary", "selection", "all", "best member", "worst member")


def main() -> None:
    """Write both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--ref", default="graphene")
    parser.add_argument("--frames", type=int, default=25, help="of each condition")
    parser.add_argument("--out", type=Path, default=Path("bench/sessions"))
    given = parser.parse_args()
    os.environ["MANYBEAM_HOME"] = str(given.home)
    os.environ["MANYBEAM_DATABASE_URL"] = f"sqlite:///{tempfile.mkdtemp()}/sessions.db"
    bench = Bench(given.ref, given.frames)
    rows = [row for stream in STREAMS for row in bench.stream(stream)]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "sessions.json").write_text(json.dumps(rows))
    text = "\n\n".join([by_condition(rows), of_all(rows, bench.costs), dropped(rows)])
    (given.out / "sessions.md").write_text(text + "\n")
    print(text)


class Bench:
    """Answers streams of frames in all ways."""

    def __init__(self, ref: str, count: int) -> None:
        from manybeam.db.deployment import open_database
        from manybeam.db.serving.sessions import Sessions
        from manybeam.predictor.predictor import Predictor
        from manybeam.predictor.versions.of_zoo import ZooVersions
        from manybeam.serve.sessions.answering import SessionAnswers
        from manybeam.serve.sessions.refresher import SessionRefresher
        from manybeam.spec.facility import facility_library
        from manybeam.zoo.registry import Zoo

        self.ref, self.count, self.library = ref, count, facility_library()
        self.predictor = Predictor(ZooVersions(Zoo()))
        self.version = self.predictor.versions.get(ref)
        assert self.version.performance is not None, f"{ref} was not calibrated"
        self.version.performance.prepare()
        self.sessions = SessionAnswers(
            self.predictor, SessionRefresher(lambda: Sessions(open_database()))
        )
        self.rng = np.random.default_rng(SEED)
        self.costs: list[dict[str, float]] = []

    def stream(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return a row for each frame of one session."""
        from manybeam.predictor.deadline import Deadline
        from manybeam.serve.query import RequestQuery
        from manybeam.serve.sessions.settings import SessionSettings

        settings = SessionSettings(ref=self.ref)
        live = self.sessions.put(f"S-{names[0]}"[:60], settings, is_new_welcome=True, who="bench")
        rows, query = [], RequestQuery()
        for place, name in enumerate(names):
            for number, (frame, truth) in enumerate(self.frames(name)):
                begun = time.perf_counter()
                (found,) = self.sessions.answers(live, [frame], query, Deadline())
                took_s = time.perf_counter() - begun
                while live.is_selecting:
                    time.sleep(0.01)
                row = self.row(frame, truth, found.answer)
                rows.append(row | {"condition": name, "place": place, "number": number,
                                   "seconds": took_s})  # fmt: skip
        self.sessions.refresher.write()
        self.sessions.refresher.read()
        events, _ = self.sessions.refresher.history(live, 1, 1000)
        for one in events:
            print(one.kind, one.members, one.why)
        counts = live.stored.state["counts"]
        self.costs.append({name: counts[name] for name in ("selections", "selection_ms", "frames")})
        return rows

    def frames(self, name: str) -> Any:
        """Yield frames of a condition that wanders, with their true atoms."""
        from manybeam.data.io.frame import Frame
        from manybeam.data.simulation.simulate import simulate
        from manybeam.learn.analysis.condition_inference import draw
        from manybeam.predictor.stream.advice import wandering

        policy = wandering(self.library.condition(name))
        for _ in range(0, self.count, BLOCK):
            seed = int(self.rng.integers(2**31))
            made = simulate(draw(policy, self.rng), BLOCK, seed=seed, shape=(256, 256))
            for pixels, size, truth in zip(
                made.frames_nyx, made.pixel_size_pm, made.truth, strict=True
            ):
                yield Frame(pixels, pixel_size_pm=float(size)), truth

    def row(self, frame: Any, truth: np.ndarray, answered: Any) -> dict[str, Any]:
        """Return the F1 of every way on one frame."""
        from manybeam.predictor.answer import Question
        from manybeam.predictor.quick import SummarisedFrame

        def f1(atoms: np.ndarray) -> float:
            return f1_on(atoms, truth, frame)

        whole = self.version.ensemble.predict(frame.pixels_yx, frame.pixel_size_pm)
        seen = SummarisedFrame.of(self.version, frame)
        assert seen is not None
        best, _ = seen.best
        alone = [f1(one) for one in whole.member_atoms]
        selected = self.predictor.answer(frame, Question(self.ref, is_selecting=True))
        known = seen.predicted(dict.fromkeys(whole.members, 1 / len(whole.members)))
        return {
            "session": f1(answered.atoms),
            "summary": f1(whole.atoms_of(list(best), list(best.values()))),
            "selection": f1(selected.atoms),
            "all": f1(whole.atoms),
            "best member": max(alone),
            "worst member": min(alone),
            "members": list(answered.members),
            "by summary": [known.low, known.f1, known.high],
            "session by summary": predicted(answered),
            "selection_predicted": predicted(selected),
            "dropped": self.fewer(whole, seen, f1),
        }

    def fewer(self, whole: Any, seen: Any, f1: Any) -> dict[str, list[float]]:
        """Return the F1 of fewer and fewer members, by who leaves them out."""
        everyone = dict.fromkeys(whole.members, 1 / len(whole.members))
        means = self.version.performance.table.f1_nm.mean(axis=0)  # type: ignore[union-attr]
        by_mean = [whole.members[place] for place in np.argsort(-means)]
        at_random = self.rng.permutation(whole.members).tolist()
        found: dict[str, list[float]] = {"summary": [], "mean score": [], "random": []}
        for count in range(len(everyone), 0, -1):
            kept = {
                "summary": list(seen.known.fewer(seen.summary_s, everyone, count)),
                "mean score": by_mean[:count],
                "random": at_random[:count],
            }
            for name, members in kept.items():
                found[name].append(f1(whole.atoms_of(members, [1 / count] * count)))
        return found


def predicted(answer: Any) -> list[float] | None:
    """Return low end, predicted F1 and high end of an answer."""
    known = answer.predicted_f1
    return None if known is None else [known.low, known.f1, known.high]


def f1_on(atoms: np.ndarray, truth: np.ndarray, frame: Any) -> float:
    """Return the F1 of atoms on one frame."""
    from manybeam.learn.scoring.scores import f1_of, match_frame

    counts = match_frame(atoms, truth, frame.pixel_size_pm, frame.pixels_yx.shape).counts
    return float(f1_of(np.array([counts]))[0])


def by_condition(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return mean F1 by condition, in the order of the streams."""
    lines = ["| condition | " + " | ".join(WAYS) + " |", "|---" * (len(WAYS) + 1) + "|"]
    for name in dict.fromkeys(row["condition"] for row in rows):
        own = [row for row in rows if row["condition"] == name]
        values = [f"{np.mean([row[way] for row in own]):.3f}" for way in WAYS]
        lines.append(f"| {name} | {' | '.join(values)} |")
    values = [f"{np.mean([row[way] for row in rows]):.3f}" for way in WAYS]
    lines.append(f"| **all {len(rows)} frames** | {' | '.join(values)} |")
    return "\n".join(lines)


def of_all(rows: Sequence[Mapping[str, Any]], costs: Sequence[Mapping[str, float]]) -> str:
    """Return what the sessions cost, how soon they followed, and whether intervals held."""
    said = []
    moved = [row for row in rows if row["place"] and row["number"] < 10]
    late = [row for row in rows if row["place"] and row["number"] >= 10]
    for name, own in (("first 10 frames after a change", moved), ("later frames", late)):
        gap = np.mean([row["selection"] - row["session"] for row in own])
        said.append(f"- session behind selection of each frame, {name}: {gap:.3f} of F1")
    total = {key: sum(one[key] for one in costs) for key in costs[0]}
    per_frame = total["selection_ms"] / total["frames"]
    said.append(
        f"- {total['selections']:.0f} selections for {total['frames']:.0f} frames, "
        f"{per_frame:.0f} ms a frame; a frame of a session took "
        f"{1000 * np.median([row['seconds'] for row in rows]):.0f} ms (median)"
    )
    for name, key, way in (
        ("all members by summary", "by summary", "all"),
        ("the session's answer by summary", "session by summary", "session"),
        ("the selected answer by analysis", "selection_predicted", "selection"),
    ):
        own = [row for row in rows if row[key] is not None]
        inside = np.mean([row[key][0] - 1e-9 <= row[way] <= row[key][2] + 1e-9 for row in own])
        error = np.sqrt(np.mean([(row[key][1] - row[way]) ** 2 for row in own]))
        wide = np.mean([row[key][2] - row[key][0] for row in own])
        said.append(
            f"- predicted F1 of {name}: 90 % interval holds in {100 * inside:.0f} %, "
            f"width {wide:.2f}, root mean square error {error:.3f}"
        )
    return "\n".join(said)


def dropped(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return mean F1 of fewer and fewer members, by who leaves them out."""
    ways = list(rows[0]["dropped"])
    most = len(rows[0]["dropped"][ways[0]])
    lines = [
        "| members left out by | " + " | ".join(f"{n} left" for n in range(most, 0, -1)) + " |",
        "|---" * (most + 1) + "|",
    ]
    for way in ways:
        means = np.mean([row["dropped"][way] for row in rows], axis=0)
        lines.append(f"| {way} | {' | '.join(f'{value:.3f}' for value in means)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
