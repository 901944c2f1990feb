"""zoo.cards and `manybeam zoo card`: a card says what was measured, and where it fails."""

import dataclasses
import re
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
from typer.testing import CliRunner

from manybeam.cli.zoo import compare as zoo_compare
from manybeam.errors import InvalidInput, UnknownRef, WriteFailed
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, FrameSetUse, Matrix, Score
from manybeam.zoo.records import MemberRecord, Record
from manybeam.zoo.registry import Zoo
from manybeam.zoo.reports.cards import card_html, card_markdown, card_picture, limits, note_for
from manybeam.zoo.reports.markdown import without_html

TAKEN = datetime(2026, 3, 4, 12, tzinfo=UTC)
SCORES = (
    Score(0, "graphene-nominal", "n" * 32, {"f1": 0.91, "frames": 64}),
    Score(1, "graphene-nominal", "n" * 32, {"f1": 0.97, "frames": 64}),
    Score(
        ENSEMBLE,
        "graphene-nominal",
        "n" * 32,
        {"f1": 0.98, "f1_low": 0.97, "f1_high": 0.99, "rmse_pm": 8.25, "ece": 0.02, "frames": 64},
        taken=TAKEN,
        scorer="2",
    ),
    Score(CLASSICAL, "graphene-nominal", "n" * 32, {"f1": 0.9, "frames": 64}),
    Score(
        ENSEMBLE, "graphene-dirty", "d" * 32, {"f1": 0.52, "ece": 0.31, "frames": 8}, taken=TAKEN
    ),
    Score(CLASSICAL, "graphene-dirty", "d" * 32, {"f1": 0.61, "frames": 8}),
    Score(1, "graphene-tilted", "t" * 32, {"f1": 0.7, "frames": 64}),
)
HOSTILE = '</code></pre><script>alert("x")</script>```|\n# not a heading'


def record_of(**changes: Any) -> Record:
    members = tuple(
        MemberRecord(
            index, 100 + index, "graphene-any", "small@1", {"name": "unet", "filters": 8}, "", "d",
            0.1, 2.0, f"m-{index}", f"{index}" * 64, 1000, "c" * 64,
        )
        for index in (0, 1)
    )  # fmt: skip
    record = Record(
        name="graphene",
        version=3,
        members=members,
        created=TAKEN,
        job={"kind": "train", "seed": 3},
        failed=("02: loss is NaN",),
        parent="graphene@2",
        code_version="0.1.0",
        inputs=(FrameSetUse("s3://lab/frames", "f" * 32),),
        environment={"torch": "2.13.0", "left-pad": "1.0"},
        self_test="s" * 64,
        aliases=("serving",),
        sha256="a" * 64,
    )
    return dataclasses.replace(record, **changes)


@pytest.fixture
def matrix() -> Matrix:
    return Matrix(SCORES, (0, 1))


class Page(HTMLParser):
    """What stands in a page: its tags, what they would fetch, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data


# -- what a card says ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fact",
    [
        pytest.param("graphene@3", id="the reference"),
        pytest.param("0.980 (0.970 to 0.990)", id="a score with its interval"),
        pytest.param("2026-03-04", id="when it was measured"),
        pytest.param("8.2", id="the position error"),
        pytest.param("01: 0.970", id="the best member"),
        pytest.param("not measured", id="what was not measured"),
        pytest.param("02: loss is NaN", id="a member that failed"),
        pytest.param("graphene@2", id="the parent"),
        pytest.param("s3://lab/frames", id="frames it was trained on"),
        pytest.param("f" * 32, id="their digest"),
        pytest.param("1" * 64, id="the digest of the weights"),
        pytest.param("a" * 64, id="the digest of the manifest"),
        pytest.param("2.13.0", id="a package that decides the answer"),
        pytest.param("s" * 64, id="the self-test"),
        pytest.param("unet: filters 8", id="the network"),
        pytest.param('mb.predict(frame, "graphene@3"', id="how to use it in Python"),
        pytest.param("manybeam predict scan.dm4 -e graphene@3", id="on the command line"),
        pytest.param("/v1/predict/graphene@3?pixel_size_pm=", id="from anywhere"),
        pytest.param('"seed": 3', id="the job"),
        pytest.param("not stated", id="no licence was given"),
    ],
)
def test_both_forms_of_a_card_say(matrix: Matrix, fact: str) -> None:
    assert fact in card_markdown(record_of(), matrix)
    assert fact in Page(card_html(record_of(), matrix, picture=False)).words


@pytest.mark.parametrize(
    "limit",
    [
        pytest.param("F1 is below 0.8 on graphene-dirty: 0.520", id="weak"),
        pytest.param("has a higher F1 on graphene-dirty: 0.610, not 0.520", id="beaten by hand"),
        pytest.param(
            "(ECE) of its probabilities is above 0.1 on graphene-dirty: 0.31",
            id="sure without reason",
        ),
        pytest.param("so the score is uncertain, on graphene-dirty.", id="few frames"),
        pytest.param(
            "not measured, but other rows of the table were, on graphene-tilted", id="gap"
        ),
        pytest.param("02: loss is NaN", id="a member failed"),
        pytest.param("not in this card were not measured", id="all else"),
    ],
)
def test_a_card_says_where_it_fails(matrix: Matrix, limit: str) -> None:
    assert limit in " ".join(limits(record_of(), matrix))


def test_a_version_that_does_well_has_only_the_last_limit() -> None:
    assert limits(record_of(failed=()), Matrix(SCORES[:4])) == [
        "Conditions that are not in this card were not measured."
    ]


def test_nothing_measured_is_said_and_shown_without_a_picture() -> None:
    card = card_html(record_of(), Matrix(members=(0, 1)))
    assert "its F1 is unknown under all conditions" in card
    assert "img" not in Page(card).tags


def test_scores_under_older_numbers_are_said_not_to_count(matrix: Matrix) -> None:
    later = matrix.with_rows([Score(ENSEMBLE, "graphene-dirty", "e" * 32, {"f1": 0.9})])
    assert "the numbers of the condition changed, for graphene-dirty" in " ".join(
        limits(record_of(), later)
    )


def test_the_card_of_one_member_speaks_of_that_member(matrix: Matrix) -> None:
    said = " ".join(limits(record_of().only(1), Matrix(SCORES[1:2] + SCORES[6:], (1,))))
    assert "F1 is below 0.8 on graphene-tilted: 0.700" in said


def test_an_archived_version_says_so(matrix: Matrix) -> None:
    assert "**Archived**: 2026-03-04" in card_markdown(record_of(archived=TAKEN), matrix)


# -- what a card must not do --------------------------------------------------------------------
def hostile() -> tuple[Record, Matrix]:
    record = record_of(job={"note": HOSTILE}, failed=(HOSTILE,), parent=HOSTILE)
    return record, Matrix(SCORES)


def test_text_of_others_is_no_html() -> None:
    page = Page(card_html(*hostile(), note=HOSTILE, licence=HOSTILE))
    assert "script" not in page.tags
    assert page.words.count("alert") == 5


def test_text_of_others_neither_breaks_a_table_nor_a_block_of_code() -> None:
    text = card_markdown(*hostile(), licence=HOSTILE)
    assert "<script>" not in re.sub(r"(````+).*?\1", "", text, flags=re.DOTALL)
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} <= {3, 5, 6, 8, 11}


TEXTS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "![a](http://evil.example/x.png)",
    "<!-- hidden -->",
    "`</code><script>alert(1)</script>",
    "**a** _b_ ~~c~~",
]


def rendered(card: str) -> Page:
    """The page that a renderer makes which obeys HTML."""
    from markdown_it import MarkdownIt

    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(card))


@pytest.mark.parametrize("text", TEXTS)
def test_a_card_in_markdown_renders_text_of_others_as_it_was_written(text: str) -> None:
    record = record_of(failed=(text,), parent=text)
    page = rendered(card_markdown(record, Matrix(SCORES), licence=text))
    assert not {"script", "img", "a", "em"} & set(page.tags)
    assert page.words.count(text) == 3


@pytest.mark.parametrize("text", TEXTS[:3] + TEXTS[4:6])
def test_a_note_in_markdown_runs_no_scripts(text: str) -> None:
    page = rendered(card_markdown(record_of(), Matrix(SCORES), note=f"# Note\n\n{text}"))
    assert not {"script", "img"} & set(page.tags)
    assert "javascript:" not in " ".join(page.fetched)


def test_code_in_a_note_stays_as_it_is() -> None:
    note = "Use `<b>` or\n\n```\n<script>\n```\n\nand <https://example.org>, if 1 < 2."
    assert without_html(note) == note


def test_a_page_asks_for_nothing_outside_itself(matrix: Matrix) -> None:
    fetched = Page(card_html(record_of(), matrix)).fetched
    assert len(fetched) == 1
    assert fetched[0].startswith("data:image/png;base64,")


# -- the note a person wrote --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "conditions", "expected"),
    [
        pytest.param({}, (), "# Graphene", id="by the name of the ensemble"),
        pytest.param({"name": "sheets"}, (), "# Graphene", id="by its policies"),
        pytest.param({"name": "x", "members": ()}, ("ptnc-hpai",), "# Single", id="by conditions"),
        pytest.param({"name": "x", "members": ()}, (), "", id="nobody wrote one"),
    ],
)
def test_the_note_of_a_structure_is_found(
    changes: dict[str, Any], conditions: tuple[str, ...], expected: str
) -> None:
    folder = Path(__file__).parents[1] / "zoo"
    assert note_for(record_of(**changes), folder, conditions)[: len(expected) or 1] == expected


def test_a_note_keeps_its_words_in_both_forms(matrix: Matrix) -> None:
    note = "# Graphene\n\n**For** one layer & `nothing` else."
    assert "<strong>For</strong> one layer &amp; <code>nothing</code>" in card_html(
        record_of(), matrix, note=note
    )
    assert "\n### Graphene\n\n**For** one layer" in card_markdown(record_of(), matrix, note=note)


# -- through the zoo and the command line -------------------------------------------------------
app = typer.Typer()
app.command("card")(zoo_compare.card)
app.command("diff")(zoo_compare.diff)


def test_a_card_is_made_of_what_the_zoo_holds(
    zoo: Zoo, name: str, tiny_members: Callable[[int], list[Any]]
) -> None:
    zoo.register(name, tiny_members(2), job={"kind": "train"}, scores=SCORES, alias="serving")
    done = CliRunner().invoke(app, ["card", name], catch_exceptions=False)
    record = zoo.resolve(name)
    assert f"# {name}@1" in done.stdout
    assert record.members[1].sha256 in done.stdout
    assert "0.980 (0.970 to 0.990)" in done.stdout


@pytest.fixture
def here(
    embedded: Zoo,
    tmp_path: Path,
    use_settings: Callable[[dict[str, str]], None],
    tiny_members: Callable[[int], list[Any]],
) -> Path:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    embedded.register("graphene", tiny_members(2), job={}, scores=SCORES, alias="serving")
    return tmp_path


def card(*words: str) -> None:
    CliRunner().invoke(app, ["card", "graphene", *words], catch_exceptions=False)


def test_a_card_as_markdown_lies_beside_its_picture(here: Path) -> None:
    card("--out", str(here / "my card.md"))
    text = (here / "my card.md").read_text()
    linked = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert (here / unquote(linked[0])).read_bytes().startswith(b"\x89PNG")


def test_a_card_as_html_is_one_file(here: Path) -> None:
    card("--out", str(here / "card.html"), "--licence", "CC BY 4.0")
    assert "CC BY 4.0" in (here / "card.html").read_text()
    assert not list(here.glob(".*.part"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["graphene", "--out", "/proc/card.html"], WriteFailed, id="/proc"),
        pytest.param(["graphene", "--out", f"{'x' * 300}.md"], WriteFailed, id="a long name"),
        pytest.param(["graphene", "--out", f"{'x' * 300}/c.md"], WriteFailed, id="a long folder"),
        pytest.param(["graphene", "--out", "card.docx"], InvalidInput, id="no form of a card"),
        pytest.param(["graphene", "--out", "no/card.md"], InvalidInput, id="no such folder"),
        pytest.param(["graphene", "--out", "zoo.html"], InvalidInput, id="a folder"),
        pytest.param(["graphene@9"], UnknownRef, id="no such version"),
    ],
)
def test_a_card_that_cannot_be_written_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: type[Exception]
) -> None:
    monkeypatch.chdir(here)
    (here / "zoo.html").mkdir()
    with pytest.raises(expected):
        CliRunner().invoke(app, ["card", *words], catch_exceptions=False)


def test_the_picture_of_a_card_is_the_matrix(matrix: Matrix) -> None:
    assert card_picture(matrix).startswith(b"\x89PNG")
