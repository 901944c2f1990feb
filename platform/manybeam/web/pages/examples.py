"""Example frames: the page of a cell of the matrix, with the errors behind its score.

A frame is made and analysed at the first request. Later its picture comes from the cache.
"""

import hashlib
import html
import json
import textwrap
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote, urlencode

import numpy as np
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from manybeam.errors import InvalidInput, ManybeamError, NotFound
from manybeam.web.pages.drawn import Drawn, folder, kept, make_drawn
from manybeam.web.render import page_of
from manybeam.web.state import AppState
from manybeam.web.version_cache import CachedVersion
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, SELECTED, Score, member_label

PICTURE = 2  # increased whenever the same frame is drawn differently


def add_examples(router: APIRouter, app_state: AppState) -> None:
    """Add the routes of example frames; they wait for the process that draws them."""

    @router.get("/zoo/{ref:path}/example/{condition}/picture.png")
    async def picture(
        ref: str, condition: str, member: int | None = None, frame: int = 0
    ) -> Response:
        place = await run_in_threadpool(find_place, app_state, ref, condition, member, frame)
        return await example_picture(app_state, place)

    @router.get("/zoo/{ref:path}/example/{condition}/sample")
    async def sample(
        ref: str, condition: str, member: int | None = None, frame: int = 0
    ) -> Response:
        place = await run_in_threadpool(find_place, app_state, ref, condition, member, frame)
        try:
            return await example_picture(app_state, place)
        except ManybeamError as error:  # a page with a picture missing is still a page
            return said_picture("This frame cannot be shown", error.what)

    @router.get("/zoo/{ref:path}/example/{condition}")
    async def example(
        request: Request, ref: str, condition: str, member: int | None = None, frame: int = 0
    ) -> Response:
        place = await run_in_threadpool(find_place, app_state, ref, condition, member, frame)
        return await example_page(app_state, request, place)


@dataclass(frozen=True)
class ExamplePlace:
    """One frame of one score of a version, and the addresses of its neighbours.

    Attributes:
        cached: the whole version.
        score: score of the ensemble, a member or the classical detector on the condition.
        number: number of the frame, from 0.
    """

    cached: CachedVersion
    score: Score
    number: int

    @property
    def frame_count(self) -> int:
        """How many frames the score was measured on."""
        return _frame_count(self.score)

    @property
    def label(self) -> str:
        """The name of the row in the matrix."""
        return member_label(self.score.member)

    @property
    def scores(self) -> tuple[Score, ...]:
        """All scores on the condition; the ensemble is first."""
        matrix = self.cached.matrix
        order = (ENSEMBLE, SELECTED, *matrix.members, CLASSICAL)
        rows = [matrix.score(m, self.score.condition) for m in order]
        return tuple(row for row in rows if row is not None)

    def address(self, *, member: int | None = None, number: int | None = None) -> str:
        """Return the page of this frame, or of another member or frame."""
        base = f"{page_of(self.cached.record.version_ref)}/example/{quote(self.score.condition)}"
        return base + self._query(member, number)

    def picture(self, drawn: Drawn) -> str:
        """Return the address of the picture; it changes with the picture."""
        base = self.address().partition("?")[0]
        query = self._query(None, self.number)
        return f"{base}/picture.png{query}{'&' if query else '?'}state={drawn.digest[:12]}"

    def _query(self, member: int | None, number: int | None) -> str:
        row = self.score.member if member is None else member
        at = self.number if number is None else number
        query = {"member": f"{row:02d}"} if row != ENSEMBLE else {}
        found = urlencode({**query, **({"frame": str(at)} if at else {})})
        return f"?{found}" if found else ""


def find_place(
    app_state: AppState, ref: str, condition: str, member: int | None, number: int
) -> ExamplePlace:
    """Return the frame of a request.

    Raises:
        NotFound: there is no such score, or there are fewer frames.
    """
    cached = app_state.version_cache.look(ref)
    if cached.record.selected is not None:
        member, cached = (
            cached.record.selected,
            app_state.version_cache.look(cached.record.version_ref),
        )
    row = ENSEMBLE if member is None else member
    score = cached.matrix.score(row, condition)
    if score is None:
        who = f"member {row:02d}" if row >= 0 else f"the {member_label(row)}"
        raise NotFound(
            f"there is no score of {who} of {cached.record.version_ref} on {condition[:100]!r}",
            f"measured conditions: {', '.join(cached.matrix.conditions) or 'none'}",
            f"/zoo/{cached.record.version_ref} shows all scores",
        )
    if not 0 <= number < _frame_count(score):
        raise NotFound(
            f"there is no frame {number} of {condition}",
            f"the score has {_frame_count(score)} frames, from 0",
            "frame=0",
        )
    return ExamplePlace(cached, score, number)


async def example_page(app_state: AppState, request: Request, place: ExamplePlace) -> Response:
    """Return the page of one frame, or the reason why it cannot be shown."""
    from manybeam.learn.scoring.scores import f1_of

    drawn: Drawn | None = None
    reason: ManybeamError | None = None
    try:
        drawn = await draw(app_state, place)
    except (NotFound, InvalidInput) as error:
        reason = error
    frames = [float(f1_of(np.array(counts))) for counts in place.score.counts]
    f1 = float(f1_of(np.array(drawn.counts))) if drawn else None
    shown = partial(app_state.pages.show, request, "example.html", place=place, drawn=drawn)
    return await run_in_threadpool(shown, reason=reason, frames=frames, f1=f1)


async def example_picture(app_state: AppState, place: ExamplePlace) -> Response:
    """Return the picture of one frame as PNG; raises as `draw` does."""
    drawn = await draw(app_state, place)
    content = await run_in_threadpool((folder() / f"{drawn.digest}.png").read_bytes)
    return Response(content, media_type="image/png", headers={"cache-control": "max-age=3600"})


def said_picture(title: str, words: str) -> Response:
    """Return a picture that says in words why there is none."""
    lines = [title, *textwrap.wrap(words, 44)[:6]]
    text = "".join(
        f'<text x="320" y="{300 + 34 * i}">{html.escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    content = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 680" font-family="sans-serif" '
        f'font-size="24" fill="#dce1e7" text-anchor="middle">{text}</svg>'
    )
    return Response(content, media_type="image/svg+xml", headers={"cache-control": "no-store"})


async def draw(app_state: AppState, place: ExamplePlace) -> Drawn:
    """Return the description of the picture of a frame; the picture is in the cache then.

    Raises:
        NotFound: the frame cannot be made again.
        Busy: too many frames are being drawn.
        Corrupt: the weights are not those registered.
        Unreachable: the zoo does not answer, and the picture is not in the cache.
    """
    digest = _digest(place)
    if (known := await run_in_threadpool(kept, digest)) is not None:
        return known
    score, urls = await run_in_threadpool(_readable, app_state, place)
    ref, described = place.cached.record.version_ref, await run_in_threadpool(app_state.described)
    frame = (app_state.zoo, ref, score, place.number, dict(described), urls)
    return await app_state.drawing.draw(digest, partial(make_drawn, digest, *frame))


def _readable(app_state: AppState, place: ExamplePlace) -> tuple[Score, list[str]]:
    """Return the score with the present URLs of its FrameSets, and those that may be read.

    They are in our store, and named by the score or by the job of its version. Other URLs are
    never read: a record may come from outside, and reading pages needs no login.
    """
    score, measure = place.score, place.cached.record.job.get("measure")
    here = app_state.framesets.here
    if score.test_set is None:
        given = measure.get("frames") if isinstance(measure, dict) else None
        named = [here(_resolved(one)) for one in given or () if isinstance(one, str)]
        return score, [url for url in named if url]
    found = [(use, here(_resolved(use.url), use.digest)) for use in score.test_set.frame_sets]
    uses = tuple(replace(use, url=url or use.url) for use, url in found)
    known = replace(score, test_set=replace(score.test_set, frame_sets=uses))
    return known, [url for _, url in found if url]


def _resolved(url: str) -> str:
    if "://" in url and not url.startswith("file://"):
        return url
    path = unquote(url.removeprefix("file://")) if url.startswith("file://") else url
    return str(Path(path).resolve())


def _digest(place: ExamplePlace) -> str:
    score, number = place.score, place.number
    decides = [
        PICTURE,
        place.cached.record.sha256,
        score.member,
        score.condition,
        score.condition_digest,
        number,
        score.counts[number : number + 1],
        score.values.get("radius_pm"),
        None if score.test_set is None else asdict(score.test_set),
        [dict(one) for one in score.detector],
    ]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]


def _frame_count(score: Score) -> int:
    return len(score.counts) or int(score.values.get("frames", 0))
