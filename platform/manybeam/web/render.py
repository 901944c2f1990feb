"""Pages from templates: the values of every page, and the format of numbers and dates."""

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from manybeam import __version__
from manybeam.errors import NotAllowed, Unreachable
from manybeam.web.auth import NOBODY, Gatekeeper, Person
from manybeam.web.colours import shade
from manybeam.zoo.matrix import BEST_F1, SELECTED_F1

if TYPE_CHECKING:
    from manybeam.web.refresher import Refresher

HERE = Path(__file__).parent
# Words that a page explains where they stand: name in templates -> label and explanation.
TERMS = {
    "f1": ("F1", "1 if every atom was found and nothing else; 0 if no atom was found. It is the "
           "harmonic mean of precision and recall."),
    "precision": ("Precision", "The share of the found atoms that really exist."),
    "recall": ("Recall", "The share of the existing atoms that were found."),
    "ece": ("ECE", "Calibration error: the mean gap between the probability of an atom and the "
            "share of such atoms that are right. 0 is perfect."),
    "rmse_pm": ("RMSE (pm)", "Root mean square error of the positions of right atoms, in "
                "picometres. Less is better."),
    "interval": ("95 % interval", "The true mean over many frames lies in it with 95 % "
                 "probability. Few frames make it wide."),
    "ensemble": ("Ensemble", "Several networks that answer together. Where they disagree, the "
                 "answer is uncertain."),
    "selected_f1": ("Selected", "The members chosen for each frame, from the frame itself, without "
                    "its true atoms. This is what manybeam predict answers by itself. F1 of them "
                    "together."),
    "best_member_f1": ("Best member", "F1 of the best member of each condition. It is known only "
                       "afterwards, from the true atoms: what a perfect choice of one member "
                       "would reach."),
    "member": ("Member", "One trained network of an ensemble."),
    "policy": ("Policy", "What a member was trained on: ranges of dose, defocus, pixel size and "
               "so on, from which its training frames were drawn."),
    "recipe": ("Recipe", "Network, training settings, and the list of members."),
    "network": ("Network", "The architecture of the members, for example a U-Net."),
    "condition": ("Imaging condition", "How frames were recorded: dose, voltage, pixel size, "
                  "defocus, contamination and so on, as numbers."),
    "classical": ("classical", "A detector without a network (difference of Gaussians), tuned to "
                  "the condition: what a network should at least reach."),
    "seed": ("Seed", "The number from which the training drew its random choices."),
    "status": ("Status", "serving: answers requests now. candidate: waits for promotion. "
               "archived: kept, but not offered."),
    "baseline": ("Baseline", "The row from which the differences are taken."),
    "digest": ("Digest", "A checksum: equal digests mean equal content."),
    "frameset": ("FrameSet", "Frames of one condition, stored together; with true atoms if they "
                 "are known."),
}  # fmt: skip
STATIC = HERE / "static"
THEME_COOKIE = "manybeam-theme"
THEMES = ("light", "dark")


class Pages:
    """Renders the templates of this package.

    Args:
        refresher: knows the age of the data.
        gatekeeper: knows who sends a request.
    """

    def __init__(self, refresher: "Refresher", gatekeeper: Gatekeeper) -> None:
        self._refresher, self._gatekeeper = refresher, gatekeeper
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=select_autoescape(default=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= FILTERS
        self._templates.globals |= {"asset": asset, "version": __version__, "terms": TERMS}

    def show(
        self, request: Request, template: str, *, status: int = 200, **values: Any
    ) -> HTMLResponse:
        """Return a page."""
        person = self._person(request)
        text = self._templates.get_template(template).render(
            person=person,
            theme=theme(request),
            path=request.url.path,
            here=str(request.url.path) + (f"?{request.url.query}" if request.url.query else ""),
            request_id=getattr(request.state, "request_id", ""),
            news=self._refresher.news,
            age_s=self._refresher.age_s,
            trouble=self._refresher.trouble,
            unreadable=self._refresher.unreadable,
            is_away=isinstance(self._refresher.trouble, Unreachable),
            status=status,
            **values,
        )
        return HTMLResponse(text, status, headers={"cache-control": "no-store"})

    def _person(self, request: Request) -> Person:
        try:
            return self._gatekeeper.who(request)
        except NotAllowed:
            return NOBODY


def theme(request: Request) -> str:
    """Return `light` or `dark` from a cookie or the browser; "" if neither gives it."""
    chosen = request.cookies.get(THEME_COOKIE, "")
    if chosen in THEMES:
        return chosen
    preferred = request.headers.get("sec-ch-prefers-color-scheme", "").strip('"')
    return preferred if preferred in THEMES else ""


@lru_cache(maxsize=64)
def asset(path: str) -> str:
    """Return the address of a static file; it changes with the content, so it may be cached."""
    digest = hashlib.sha256((STATIC / path).read_bytes()).hexdigest()[:12]
    return f"/static/{path}?{digest}"


def score(value: float | None, key: str = "f1") -> str:
    """Return a score as people read it.

    Example:
        >>> score(0.91234), score(12.345, "rmse_pm"), score(None)
        ('0.912', '12.3', 'not measured')
    """
    if value is None:
        return "not measured"
    return f"{value:.1f}" if key.endswith(("_pm", "_ms")) else f"{value:.3f}"


def signed(value: float | None, key: str = "f1") -> str:
    """Return a difference with its sign; the minus is as wide as the plus."""
    if value is None:
        return "–"
    text = score(abs(value), key)
    return text if float(text) == 0 else f"{'+' if value > 0 else '−'}{text}"


def day(moment: datetime | None) -> str:
    """Return the day of a moment in UTC."""
    return "–" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d")


def minute(moment: datetime | None) -> str:
    """Return a moment in UTC to the minute."""
    return "–" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def ago(seconds: float | None) -> str:
    """Return an age in words.

    Example:
        >>> ago(4.2), ago(150), ago(7300), ago(None)
        ('4 s', '2 min', '2 h', 'never')
    """
    if seconds is None:
        return "never"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size * (2 if size == 86400 else 1):
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def number(value: float | None) -> str:
    """Return a physical quantity as people write it.

    Example:
        >>> number(200000.0), number(7.8), number(1.2e6), number(60.0)
        ('200,000', '7.8', '1,200,000', '60')
    """
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:g}"


def score_name(key: str) -> str:
    """Return the name of a score on a page.

    Example:
        >>> score_name("rmse_pm"), score_name("f1"), score_name("best_threshold")
        ('RMSE (pm)', 'F1', 'best threshold')
    """
    known = {
        "f1": "F1",
        SELECTED_F1: "F1 of the selected members",
        BEST_F1: "F1 of the best member",
        "ece": "ECE",
        "rmse_pm": "RMSE (pm)",
        "mae_pm": "MAE (pm)",
    }
    return known.get(key, key.replace("_", " "))


# The beginning of a text that is a command or a name: of one thing without an article.
_NAME = (
    r"manybeam |(?!(?:there|it|this|that|what|one|nothing|nobody|none|each|all|only|members) )"
    r"[a-z]+ (?:is|has|was|serves|cannot|does) "
)


def sentence(text: str) -> str:
    """Return a text of an error as a sentence begins; references and commands stay as they are.

    Example:
        >>> sentence("there is no page '/x'"), sentence("graphene@2 is archived")
        ("There is no page '/x'", 'graphene@2 is archived')
        >>> sentence("manybeam doctor finds the reason"), sentence("graphene is archived")
        ('manybeam doctor finds the reason', 'graphene is archived')
    """
    is_plain = re.match(r"[a-z]+[ ,;]", text) and not re.match(_NAME, text)
    return text[:1].upper() + text[1:] if is_plain else text


def in_path(ref: str) -> str:
    """Return a reference as a part of an address."""
    return quote(ref, safe="@/")


def page_of(ref: str) -> str:
    """Return the address of the page of a version or member."""
    return f"/zoo/{in_path(ref)}"


FILTERS: dict[str, Callable[..., str]] = {
    "score": score,
    "signed": signed,
    "day": day,
    "minute": minute,
    "ago": ago,
    "number": number,
    "score_name": score_name,
    "sentence": sentence,
    "in_path": in_path,
    "shade": shade,
}
