"""The chapters of the demo: each does a step, prints a few lines and stores facts.

The unseen frames are simulated under a condition that no member was measured on, with separate
seeds. Their truth is used for scores and pictures only, never to choose or to train.
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
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, SELECTED

if TYPE_CHECKING:
    from manybeam.cli.demo.comparison import Answered
    from manybeam.data.frames import FrameSet
    from manybeam.jobs.test_sets import LabelledFrame
    from manybeam.learn.nets.ensemble import Ensemble
    from manybeam.spec import Condition
    from manybeam.zoo.records import Record
    from manybeam.zoo.registry import Zoo

Array = np.ndarray[Any, Any]
Lines = Iterator[str]
# Not seeds of training or measuring.
UNSEEN_SEED, ADAPT_SEED, COMPARED_SEED = 424_242, 515_151, 626_262
UNSEEN_FRAMES, ADAPT_FRAMES, COMPARED_FRAMES = 8, 6, 4


class Story:
    """The main job from nothing to a report, chapter by chapter.

    Args:
        job: file of the training job.
        drift: id of the condition of the unseen frames.
        out: folder of the report.
        frame_count: simulated frames to calibrate on.
        facts: results of earlier runs; this run adds its own.
    """

    def __init__(
        self, job: Path, drift: str, out: Path, frame_count: int, facts: dict[str, Any]
    ) -> None:
        self.job = load_job(job)
        self.library = Library.beside(job, settings().zoo)
        self.drift = self.library.condition(drift)
        self.recipe = self.library.recipe(self.job.recipe)
        self.out, self.frame_count, self.facts = out, frame_count, facts
        self._forget_other_stories()

    def steps(self) -> list[tuple[str, Callable[[], Lines]]]:
        """Return the chapters: title and function."""
        return [
            ("start Ray on this machine", self.start),
            (f"simulate the unseen frames: {self.drift.title}", self.simulate),
            (f"train {len(self.recipe.members)} members, measure and register them", self.train),
            ("calibrate them on simulated frames of many conditions", self.calibrate),
            ("compare the selected members with all of them on every condition", self.compare),
            ("serve the ensemble over HTTP", self.serve),
            ("send an unseen frame to the service", self.predict),
            ("ask the service which members suit that frame", self.select),
            ("adapt members to unlabelled frames", self.adapt),
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
        """Simulate the unseen frames, and those to adapt to."""
        unseen, unlabelled = self.unseen, self.unlabelled
        atoms = sum(len(unseen.truth(i)) for i in range(len(unseen)))
        yield f"{len(unseen)} frames with {atoms} atoms to measure F1 on, {unseen.digest[:12]}"
        yield f"{len(unlabelled)} other frames to adapt to; their truth is never read"

    def train(self) -> Lines:
        """Train, measure and register, unless an earlier run has."""
        if "ref" not in self.facts:
            from manybeam.cli.jobs import run_job
            from manybeam.cli.terminal.progress import Progress

            with Progress("start training", lines=1) as progress:
                made = run_job(self.job, self.library, progress)
            self.facts["ref"] = made.ref
        record, matrix = self.record, self.zoo.matrix(self.facts["ref"])
        failed = f", {len(record.failed)} failed" if record.failed else ""
        yield f"{record.ref}: {record.member_count} members{failed}, aliases {record.aliases}"
        seconds = [member.wall_s for member in record.members]
        yield f"{np.mean(seconds):.0f} s of one core a member"
        yield "F1 on each condition: mean of the members, best member, ensemble, classical detector"
        for condition in matrix.conditions:
            found = [matrix.value(m, condition) for m in matrix.members]
            of = [value for value in found if value is not None]
            both = [matrix.value(m, condition) for m in (ENSEMBLE, CLASSICAL)]
            others = " ".join(f"{value:.3f}" for value in both if value is not None)
            yield f"  {condition:28s} {np.mean(of):.3f} {max(of):.3f} {others}"

    def calibrate(self) -> Lines:
        """Measure the calibration set, then the selected members, unless an earlier run has."""
        from manybeam.cli.terminal.output import say
        from manybeam.cli.terminal.progress import Progress
        from manybeam.jobs.calibrate import calibrate_ensemble
        from manybeam.jobs.kinds import Callbacks, measure_version

        if "calibrated" not in self.facts:
            with Progress("start calibrating", lines=1) as progress:
                calibrate_ensemble(
                    self.zoo,
                    self.record.ref,
                    self.library,
                    frame_count=self.frame_count,
                    progress=lambda done, total: progress.update("calibrate", done, total),
                )
                callbacks = Callbacks(progress.update, say)
                measure_version(self.record.ref, self.job.measure, self.library, callbacks)
            self.facts["calibrated"] = self.frame_count
        yield f"{self.facts['calibrated']} frames; F1 can now be predicted for a new frame"
        matrix = self.zoo.matrix(self.record.ref)
        selected, together = matrix.mean(SELECTED), matrix.mean(ENSEMBLE)
        if selected is not None and together is not None:
            yield f"mean F1 of these conditions: all {together:.3f}, selected {selected:.3f}"

    def serve(self) -> Lines:
        """Start the prediction service on the platform."""
        from urllib.parse import urlsplit

        from manybeam.serve.app import run_service

        url = urlsplit(settings().service_url)
        run_service([self.record.ref], host=url.hostname or "127.0.0.1", port=url.port or 8100)
        yield f"{settings().service_url}/v1/predict/{self.job.name}"

    def predict(self) -> Lines:
        """Send the unseen frame of the report to the service and score the answer."""
        from manybeam.cli.demo.comparison import score

        answer = self._ask(f"/v1/predict/{self.record.ref}", "want=atoms,mean,std")
        arrays = np.load(io.BytesIO(answer), allow_pickle=False)
        scores = score([arrays["atoms"]], [self.typical.frame])
        self.facts["predicted"] = scores.values()
        yield f"{len(arrays['atoms'])} atoms, {len(answer) / 1000:.0f} kB"
        yield f"F1 {scores.f1:.3f} against the truth, position error {scores.rmse_pm:.0f} pm"

    def select(self) -> Lines:
        """Ask the service which members suit that frame, and compare its answer with the truth."""
        from manybeam.cli.demo.comparison import member_names, score, truth_words, verdict_words

        answer = json.loads(self._ask("/v1/select", f"ensemble={self.record.ref}"))
        self.facts["selection"] = answer
        one, reached = self.typical, score([self.typical.selected.atoms], [self.typical.frame]).f1
        yield f"selected: {member_names(answer['chosen'])}"
        yield f"verdict: {verdict_words(answer['verdict'], answer['reasons'], one.predicted)}"
        yield truth_words(one.predicted, reached)

    def compare(self) -> Lines:
        """Compare ways to answer on each condition, unless an earlier run has."""
        from manybeam.cli.demo.comparison import condition_row, ways_to_answer

        if "compared" not in self.facts:
            measured = self.zoo.matrix(self.record.ref).conditions
            known = [one for name, one in self.library.conditions.items() if name in measured]
            rows = [
                condition_row(one, self._answers(self._fresh(one)), is_unseen=False)
                for one in known
            ]
            rows.append(condition_row(self.drift, self.answered, is_unseen=True))
            self.facts |= {"ways": ways_to_answer(self.answered), "compared": rows}
        yield "F1 of all members, of the selected ones, of the best member"
        for row in self.facts["compared"]:
            found = " ".join(f"{row[way]:.3f}" for way in ("everyone", "selected", "best"))
            yield f"  {row['condition']:28s} {found} (member {row['best_member']:02d})"

    def adapt(self) -> Lines:
        """Run one gated round on the unlabelled frames, unless an earlier run has."""
        if "round" not in self.facts:
            self.facts["round"] = self._one_round()
        done = self.facts["round"]
        yield done["why"]
        made = done["ref"] or "none, the version stays as it is"
        yield f"candidate: {made}; {done['wall_s']:.0f} s"
        for row in done["rows"]:
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
        """Frames of the unseen condition, with truth; nothing is trained or chosen on them."""
        return self._simulated("unseen", UNSEEN_FRAMES, UNSEEN_SEED)

    @cached_property
    def unlabelled(self) -> "FrameSet":
        """Other frames of that condition; their truth is never read."""
        return self._simulated("unlabelled", ADAPT_FRAMES, ADAPT_SEED)

    @cached_property
    def frames(self) -> "list[LabelledFrame]":
        """The unseen frames with their truth."""
        from manybeam.jobs.test_sets import LabelledFrame

        unseen = self.unseen
        return [
            LabelledFrame(unseen.frame(i), unseen.truth(i), unseen.pixel_size_pm(i))
            for i in range(len(unseen))
        ]

    @cached_property
    def answered(self) -> "list[Answered]":
        """The unseen frames, answered by all members and by those selected for each frame."""
        return self._answers(self.frames)

    @property
    def typical(self) -> "Answered":
        """The unseen frame that is shown: the one with the middle predicted F1.

        It is chosen by the prediction, never by the truth.
        """
        ranked = sorted(self.answered, key=lambda one: one.predicted[0])
        return ranked[len(ranked) // 2]

    def atoms_of(self, ensemble: "Ensemble", members: Sequence[int] | None = None) -> list[Array]:
        """Return the atoms that some members find in each unseen frame."""
        size = self.unseen.pixel_size_pm(0)
        return [
            ensemble.predict(frame, size, members=members).atoms for frame in self.unseen.frames()
        ]

    def _forget_other_stories(self) -> None:
        """Remove facts of another job, recipe, policy, condition or platform."""
        policies = {
            one.policy: self.library.policy(one.policy).digest for one in self.recipe.members
        }
        parts = [__version__, self.job.model_dump_json(), self.recipe.model_dump_json()]
        text = json.dumps([*parts, policies, self.drift.digest], sort_keys=True)
        story = hashlib.sha256(text.encode()).hexdigest()
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
        """Post the unseen frame of the report to the service and return the body of its answer."""
        import urllib3

        from manybeam.cluster.identity import check_platform

        body, frame = io.BytesIO(), self.typical.frame
        np.save(body, frame.frame_yx, allow_pickle=False)
        url = f"{settings().service_url}{path}?{query}&pixel_size_pm={frame.pixel_size_pm}"
        headers = {"Content-Type": "application/x-npy", **settings().service_headers}
        answer = urllib3.request("POST", url, body=body.getvalue(), headers=headers, timeout=120.0)
        check_platform(url, answer.headers)
        if answer.status != 200:
            raise Unreachable(f"HTTP {answer.status} from {url}", answer.data.decode()[:500], "")
        return answer.data

    def _answers(self, frames: "Sequence[LabelledFrame]") -> "list[Answered]":
        from manybeam.cli.demo.comparison import answer_each

        return list(answer_each(self.zoo, self.facts["ref"], self.library, frames))

    def _fresh(self, condition: "Condition") -> "list[LabelledFrame]":
        """Simulate a few frames that were not used for training, calibration or scores."""
        from manybeam.data.simulation.simulate import simulate
        from manybeam.jobs.test_sets import LabelledFrame

        made = simulate(condition, COMPARED_FRAMES, seed=COMPARED_SEED)
        each = zip(made.frames_nyx, made.truth, made.pixel_size_pm, strict=True)
        return [LabelledFrame(frame_yx, truth, float(size)) for frame_yx, truth, size in each]

    def _one_round(self) -> dict[str, Any]:
        """Run one round and score the members it changed, before and after, on unseen frames."""
        from manybeam.cli.demo.comparison import score_row
        from manybeam.jobs.adapt import iterate
        from manybeam.learn.nets.ensemble import Ensemble

        policy = self.library.policy(self.recipe.members[-1].policy)
        chosen = self.facts["selection"]["chosen"][:2]
        done = iterate(
            self.zoo, self.record.ref, self.unlabelled.url, policy, self.library, members=chosen
        )
        after = [one for one in done.round.members if one.index in chosen]
        tuned = Ensemble(after if done.round.accepted else done.round.tuned or after)
        verdict = "accepted" if done.round.accepted else "refused"
        return {
            "why": done.round.why,
            "accepted": done.round.accepted,
            "ref": done.record.ref if done.record else "",
            "wall_s": done.round.wall_s,
            "members": chosen,
            "rows": [
                score_row("before", self.atoms_of(self.ensemble, chosen), self.frames),
                score_row(f"after ({verdict})", self.atoms_of(tuned), self.frames),
            ],
        }
