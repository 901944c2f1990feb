"""The chapters of the demo: what each does, the few lines it says, the facts it leaves behind.

The frames the story is judged on are simulated under a condition no member was trained on, with
seeds of their own; their truth is looked at only for the figures.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manybeam import __version__
from manybeam.errors import Unreachable
from manybeam.settings import settings
from manybeam.spec import Library, load_job

if TYPE_CHECKING:
    from manybeam.data.frames import FrameSet
    from manybeam.learn.nets.ensemble import Ensemble
    from manybeam.learn.scoring.scores import Scores
    from manybeam.zoo.records import Record
    from manybeam.zoo.registry import Zoo

Array = np.ndarray[Any, Any]
Lines = Iterator[str]
UNSEEN_SEED, ADAPT_SEED = 424_242, 515_151  # apart from the seeds of training and measuring
UNSEEN_FRAMES, ADAPT_FRAMES = 8, 6
REHEARSED_FRAMES = 240


class Story:
    """The main job from nothing to a report, chapter by chapter.

    Args:
        job: file of the training job.
        drift: id of the condition the unseen frames are simulated under.
        facts: what earlier runs found out, and what this one adds; the caller keeps it.
    """

    def __init__(self, job: Path, drift: str, facts: dict[str, Any]) -> None:
        self.job = load_job(job)
        self.library = Library.beside(job, settings().zoo)
        self.drift = self.library.condition(drift)
        self.recipe = self.library.recipe(self.job.recipe)
        self.facts = facts
        self._forget_other_stories()

    def steps(self) -> list[tuple[str, Callable[[], Lines]]]:
        """Return the chapters before the report: title and what to run."""
        return [
            ("start Ray on this machine", self.start),
            (f"simulate unseen frames under {self.drift.id}", self.simulate),
            (f"train {len(self.recipe.members)} members, measure and register them", self.train),
            ("rehearse them under many conditions", self.rehearse),
            ("serve the ensemble", self.serve),
            ("predict an unseen frame through HTTP", self.predict),
            ("select members for it", self.select),
            ("adapt to unlabelled frames, one gated round", self.adapt),
        ]

    def start(self) -> Lines:
        """Start the platform's Ray head."""
        from manybeam.cluster.head import start_head
        from manybeam.cluster.joining import connect

        found = start_head(settings().home)
        connect()
        yield f"Ray answers at {found.address} with {found.cpus:.0f} cores, on loopback only"

    def stop(self) -> None:
        """Stop what `start` and `serve` started."""
        from manybeam.cluster.head import stop_head
        from manybeam.cluster.joining import disconnect

        disconnect()
        stop_head(settings().home)

    def simulate(self) -> Lines:
        """Simulate the frames that are judged on, and those that are adapted to."""
        unseen, unlabelled = self.unseen, self.unlabelled
        atoms = sum(len(unseen.truth(i)) for i in range(len(unseen)))
        yield f"{len(unseen)} frames with {atoms} atoms to judge by, {unseen.digest[:12]}"
        yield f"{len(unlabelled)} other frames to adapt to; their truth is never read"

    def train(self) -> Lines:
        """Train, measure and register, unless an earlier run has."""
        if "ref" not in self.facts:
            from manybeam.cli.jobs import train_and_register
            from manybeam.cli.terminal.progress import Progress

            with Progress(lines=1) as progress:
                made = train_and_register(self.job, self.library, progress)
            self.facts["ref"] = made.ref
        record, matrix = self.record, self.zoo.matrix(self.facts["ref"])
        failed = f", {len(record.failed)} failed" if record.failed else ""
        yield f"{record.ref}: {record.member_count} members{failed}, aliases {record.aliases}"
        seconds = [member.wall_s for member in record.members]
        yield f"{np.mean(seconds):.0f} s of one core a member"
        yield f"F1 on {len(matrix.conditions)} conditions: member mean, best, ensemble, classical"
        for condition in matrix.conditions:
            found = [matrix.value(m, condition) for m in matrix.members]
            of = [value for value in found if value is not None]
            both = [matrix.value(m, condition) for m in (-1, -2)]
            told = " ".join(f"{value:.3f}" for value in both if value is not None)
            yield f"  {condition:28s} {np.mean(of):.3f} {max(of):.3f} {told}"

    def rehearse(self) -> Lines:
        """Note what every member makes of frames of many conditions, unless an earlier run has."""
        from manybeam.cli.terminal.progress import Progress
        from manybeam.jobs.calibrate import calibrate_ensemble
        from manybeam.predictor.learned import performance_predictor

        if "rehearsed" not in self.facts:
            with Progress(lines=1) as progress:
                calibrate_ensemble(
                    self.zoo,
                    self.record.ref,
                    self.library,
                    frame_count=REHEARSED_FRAMES,
                    progress=lambda done, total: progress.update("rehearse", done, total),
                )
            self.facts["rehearsed"] = REHEARSED_FRAMES
        known = performance_predictor(self.zoo, self.record.ref)
        if known is not None:
            weights = ", ".join(f"{name} {weight:.2f}" for name, weight in known.weights.items())
            yield f"{len(known.table)} frames; what a member promises is told by {weights}"

    def serve(self) -> Lines:
        """Start the prediction service on the platform."""
        from urllib.parse import urlsplit

        from manybeam.serve.app import run_service

        url = urlsplit(settings().service_url)
        run_service([self.record.ref], host=url.hostname or "127.0.0.1", port=url.port or 8100)
        yield f"{settings().service_url}/v1/predict/{self.job.name}"

    def predict(self) -> Lines:
        """Send the first unseen frame to the service and judge the answer."""
        answer = self._ask(f"/v1/predict/{self.record.ref}", "want=atoms,mean,std")
        arrays = np.load(io.BytesIO(answer), allow_pickle=False)
        scores = self._judge([arrays["atoms"]])
        self.facts["predicted"] = scores.values()
        yield f"{len(arrays['atoms'])} atoms, {len(answer) / 1000:.0f} kB"
        yield f"F1 {scores.f1:.3f} against the truth, position error {scores.rmse_pm:.0f} pm"

    def select(self) -> Lines:
        """Ask which members suit the frame; then compare the rivals on all unseen frames."""
        answer = json.loads(self._ask("/v1/select", f"ensemble={self.record.ref}"))
        self.facts["selection"] = answer
        yield f"{answer['verdict']}: {answer['why']}"
        self.facts["rivals"] = rivals = self._rivals(answer["chosen"])
        for row in rivals:
            yield f"  {row['answer']:24s} F1 {row['f1']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"

    def adapt(self) -> Lines:
        """Run one gated round on the unlabelled frames, unless an earlier run has."""
        if "round" not in self.facts:
            self.facts["round"] = self._one_round()
        told = self.facts["round"]
        yield told["why"]
        made = told["ref"] or "none: the parent is kept"
        yield f"candidate: {made}; {told['wall_s']:.0f} s"
        for row in told["rows"]:
            yield f"  {row['answer']:24s} F1 {row['f1']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"

    @cached_property
    def zoo(self) -> "Zoo":
        """The demo's own zoo."""
        from manybeam.zoo.registry import Zoo

        return Zoo()

    @property
    def record(self) -> "Record":
        """The version this demo registered."""
        return self.zoo.resolve(self.facts["ref"])

    @cached_property
    def ensemble(self) -> "Ensemble":
        """Its members, in this process."""
        return self.zoo.ensemble(self.facts["ref"])

    @cached_property
    def unseen(self) -> "FrameSet":
        """Frames of the drifted condition, with truth, that nothing is trained or chosen on."""
        return self._simulated("unseen", UNSEEN_FRAMES, UNSEEN_SEED)

    @cached_property
    def unlabelled(self) -> "FrameSet":
        """Other frames of that condition; their truth is never read."""
        return self._simulated("unlabelled", ADAPT_FRAMES, ADAPT_SEED)

    def atoms_of(self, ensemble: "Ensemble", members: Sequence[int] | None = None) -> list[Array]:
        """Return the atoms that some members find in each unseen frame."""
        size = self.unseen.pixel_size_pm(0)
        return [
            ensemble.predict(frame, size, members=members).atoms for frame in self.unseen.frames()
        ]

    def _forget_other_stories(self) -> None:
        """Drop facts of another job, recipe, policy, condition or platform than this one's."""
        policies = {
            one.policy: self.library.policy(one.policy).digest for one in self.recipe.members
        }
        parts = [__version__, self.job.model_dump_json(), self.recipe.model_dump_json()]
        told = json.dumps([*parts, policies, self.drift.digest], sort_keys=True)
        story = hashlib.sha256(told.encode()).hexdigest()
        if self.facts.get("story") != story or not (settings().home / "zoo.db").exists():
            self.facts.clear()
        self.facts["story"] = story

    def _simulated(self, name: str, count: int, seed: int) -> "FrameSet":
        from manybeam.data.frames import FrameSet
        from manybeam.data.simulation.simulate import simulate_into
        from manybeam.errors import UnknownFrameSet

        url = f"{settings().store_url}/demo/{name}-{self.drift.digest[:12]}"
        try:
            there = FrameSet.open(url)
        except UnknownFrameSet:
            there = None
        if there is not None and len(there) == count:
            return there
        return simulate_into(url, self.drift, count, seed=seed, overwrite=True)

    def _ask(self, path: str, query: str) -> bytes:
        """Post the first unseen frame to the service and return the body of its answer."""
        import urllib3

        body = io.BytesIO()
        np.save(body, self.unseen.frame(0), allow_pickle=False)
        url = f"{settings().service_url}{path}?{query}&pixel_size_pm={self.unseen.pixel_size_pm(0)}"
        headers = {"Content-Type": "application/x-npy"}
        answer = urllib3.request("POST", url, body=body.getvalue(), headers=headers, timeout=120.0)
        if answer.status != 200:
            raise Unreachable(f"HTTP {answer.status} from {url}", answer.data.decode()[:500], "")
        return answer.data

    def _judge(self, found: Sequence[Array]) -> "Scores":
        """Return the scores of atoms found in the first unseen frames."""
        from manybeam.learn.scoring.scores import score_frames

        count = len(found)
        truth = [self.unseen.truth(i) for i in range(count)]
        sizes = [self.unseen.pixel_size_pm(i) for i in range(count)]
        return score_frames(found, truth, sizes, None, [self.unseen.shape] * count)

    def _row(self, answer: str, found: Sequence[Array]) -> dict[str, Any]:
        scores = self._judge(found)
        return {
            "answer": answer,
            "f1": scores.f1,
            "low": scores.f1_low,
            "high": scores.f1_high,
            "precision": scores.precision,
            "recall": scores.recall,
            "rmse_pm": scores.rmse_pm,
        }

    def _rivals(self, chosen: Sequence[int]) -> list[dict[str, Any]]:
        """Return what each way to answer is worth on the unseen frames, the oracle last."""
        from manybeam.learn.scoring.classical import detect

        size = self.unseen.pixel_size_pm(0)
        answers = [self.ensemble.predict(frame, size) for frame in self.unseen.frames()]
        alone = [
            self._row(f"member {m:02d}", [one.member_atoms[place] for one in answers])
            for place, m in enumerate(self.ensemble.indices)
        ]
        classical = [detect(frame, size) for frame in self.unseen.frames()]
        ranked = sorted(alone, key=lambda row: float(row["f1"]))
        names = ", ".join(f"{m:02d}" for m in chosen)
        return [
            self._row("classical detector", classical),
            {**ranked[0], "answer": f"worst ({ranked[0]['answer']})"},
            self._row("ensemble, all members", [one.atoms for one in answers]),
            self._row(f"selected ({names})", self.atoms_of(self.ensemble, chosen)),
            {**ranked[-1], "answer": f"oracle ({ranked[-1]['answer']})"},
        ]

    def _one_round(self) -> dict[str, Any]:
        """Run the round and judge the members it touched, before and after, on unseen frames."""
        from manybeam.jobs.adapt import iterate
        from manybeam.learn.nets.ensemble import Ensemble

        policy = self.library.policy(self.recipe.members[-1].policy)
        chosen = self.facts["selection"]["chosen"][:2]
        done = iterate(
            self.zoo, self.record.ref, self.unlabelled.url, policy, self.library, members=chosen
        )
        after = [one for one in done.round.members if one.index in chosen]
        tuned = Ensemble(after if done.round.accepted else done.round.tuned or after)
        verdict = "candidate" if done.round.accepted else "refused"
        return {
            "why": done.round.why,
            "accepted": done.round.accepted,
            "ref": done.record.ref if done.record else "",
            "wall_s": done.round.wall_s,
            "members": chosen,
            "rows": [
                self._row("before", self.atoms_of(self.ensemble, chosen)),
                self._row(f"as tuned ({verdict})", self.atoms_of(tuned)),
            ],
        }
