"""Model cards: the content of a version, its origin, its scores, and where it fails.

A card is made from the record and the matrix only, so that it contains only measured facts. A note
about the structure (`cards/*.md` of the zoo folder) is included; HTML in it is shown as text.
"""

import base64
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from manybeam.settings import settings
from manybeam.zoo.matrix import CLASSICAL, Matrix, member_label
from manybeam.zoo.reports.markdown import fenced, plain, without_html

if TYPE_CHECKING:
    from manybeam.zoo.matrix import FrameSetUse
    from manybeam.zoo.records import MemberRecord, Record

POOR_F1 = 0.8  # below it, about every fifth atom is wrong, and the card lists the condition
POOR_ECE = 0.1
FEW_FRAMES = 16
MOST_COLUMNS = 12  # with more members, their scores are only in the picture
PACKAGES = ("manybeam", "torch", "numpy", "scipy", "mlflow", "ray", "zarr", "safetensors")
_TEMPLATE = Path(__file__).with_name("card.html.jinja")

Cells = Sequence[str]


@dataclass(frozen=True)
class CardTable:
    """A heading, the names of the columns and the rows below them."""

    title: str
    columns: Cells
    rows: Sequence[Cells]
    note: str = ""


@dataclass(frozen=True)
class ModelCard:
    """The content of a card, before it is Markdown or HTML.

    Attributes:
        title: the reference.
        lead: the first sentence.
        facts: names and values of single facts.
        limits: sentences about conditions where it fails.
        tables: scores by condition, by member, members, inputs, environment.
        use: name and text of each way to use it.
        job: the job that made it, as JSON.
        note: a note about the structure, as Markdown; "" if there is none.
    """

    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    limits: Cells
    tables: Sequence[CardTable]
    use: Sequence[tuple[str, str]]
    job: str
    note: str = field(default="")


def card_markdown(
    record: "Record", matrix: Matrix, *, note: str = "", licence: str = "", picture: str = ""
) -> str:
    """Return the card of a version as Markdown.

    Args:
        record: the version.
        matrix: its scores.
        note: a note about the structure; see `note_for`.
        licence: licence of the weights; if left out, the card says "not stated".
        picture: link to the picture of the matrix; "" for no picture.
    """
    card = describe(record, matrix, note=note, licence=licence)
    parts = [f"# {plain(card.title)}", plain(card.lead)]
    parts.append("\n".join(f"- **{plain(name)}**: {plain(value)}" for name, value in card.facts))
    parts += ["## Where it fails", "\n".join(f"- {plain(text)}" for text in card.limits)]
    if picture:
        parts.append(f"![F1 of {plain(card.title)}, members by conditions]({picture})")
    for table in card.tables:
        parts += [f"## {table.title}", *filter(None, [table.note]), _markdown_table(table)]
    parts.append("## How to use it")
    parts += [f"{name}\n\n{fenced(text)}" for name, text in card.use]
    parts += ["## The job that made it", fenced(card.job)]
    if card.note:
        note = re.sub(r"^#", "###", without_html(card.note), flags=re.MULTILINE)
        parts += ["## About the structure", note]
    return "\n\n".join(parts).rstrip() + "\n"


def card_html(
    record: "Record", matrix: Matrix, *, note: str = "", licence: str = "", picture: bool = True
) -> str:
    """Return the card of a version as one HTML page without external files.

    All text is escaped. Style and picture are inside the page. Under a content security policy it
    needs `style-src 'unsafe-inline'; img-src data:`.

    Args:
        record: the version.
        matrix: its scores.
        note: a note about the structure; see `note_for`.
        licence: licence of the weights; if left out, the card says "not stated".
        picture: whether to include the picture of the matrix; the tables have the numbers too.
    """
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    )
    drawn = base64.b64encode(card_picture(matrix)).decode() if picture and len(matrix) else ""
    card = describe(record, matrix, note=note, licence=licence)
    return template.render(card=card, picture=drawn, note=_note_html(card.note))


def card_picture(matrix: Matrix, key: str = "f1") -> bytes:
    """Return the picture of a card, members x conditions, as a PNG."""
    from manybeam.zoo.reports.plots import matrix_figure, png

    return png(matrix_figure(matrix, key))


def note_for(record: "Record", folder: Path, conditions: Iterable[str] = ()) -> str:
    """Return the note about the structure of a version; "" if there is none.

    It is the file of `folder/cards` with the first word of the name of the ensemble, its policies
    or its measured conditions: `graphene.md` for `graphene-60kv`.

    Args:
        record: the version.
        folder: the zoo folder (`Library.folder`).
        conditions: ids of the measured conditions.
    """
    names = [record.name, *(member.policy for member in record.members), *conditions]
    for stem in dict.fromkeys(re.split(r"[-._]", name)[0] for name in names):
        path = folder / "cards" / f"{stem}.md"
        if path.is_file():
            return path.read_text(encoding="utf-8").strip()
    return ""


def describe(record: "Record", matrix: Matrix, *, note: str = "", licence: str = "") -> ModelCard:
    """Return the content of the card of a version."""
    tables = [
        _by_condition(record, matrix),
        *_by_member(matrix),
        _members(record, matrix),
        *_frame_sets("Training frames", record.inputs),
        *_frame_sets("Recorded test frames", matrix.frame_sets),
        *_environment(record),
    ]
    return ModelCard(
        title=record.ref,
        lead=_lead(record),
        facts=_facts(record, licence),
        limits=limits(record, matrix),
        tables=tables,
        use=_use(record),
        job=json.dumps(record.job, indent=1, default=str),
        note=note,
    )


def limits(record: "Record", matrix: Matrix) -> list[str]:
    """Return sentences about conditions where a version fails or was not measured.

    Args:
        record: the version, or one member of it.
        matrix: its scores.
    """
    if not len(matrix):
        return ["It was not measured, so its F1 is unknown under all conditions."]
    row = record.subject
    weak, blurred, few, beaten, unknown = [], [], [], [], []
    for condition in matrix.conditions:
        values, by_hand = matrix.values(row, condition), matrix.value(CLASSICAL, condition)
        f1 = values.get("f1")
        if f1 is None:
            unknown.append(condition)
            continue
        weak += [f"{condition}: {_interval(values)}"] if f1 < POOR_F1 else []
        beaten += [f"{condition}: {by_hand:.3f}, not {f1:.3f}"] if (by_hand or 0) > f1 else []
        off = values.get("ece", 0.0)
        blurred += [f"{condition}: {off:.2f}"] if off > POOR_ECE else []
        few += [condition] if 0 < values.get("frames", FEW_FRAMES) < FEW_FRAMES else []
    listed = [
        (f"F1 is below {POOR_F1:g} on", weak),
        ("A classical detector that is tuned to the condition has a higher F1 on", beaten),
        (f"The calibration error (ECE) of its probabilities is above {POOR_ECE:g} on", blurred),
        (f"There are fewer than {FEW_FRAMES} test frames, so the score is uncertain, on", few),
        ("It was not measured, but other rows of the table were, on", unknown),
        ("Old scores are not used, because the numbers of the condition changed, for",
         sorted({condition for condition, _ in matrix.superseded})),
        ("Members that failed in training:", list(record.failed)),
    ]  # fmt: skip
    sentences = [f"{words} {'; '.join(which)}." for words, which in listed if which]
    sentences.append("Conditions that are not in this card were not measured.")
    return sentences


def _lead(record: "Record") -> str:
    networks = "; ".join(sorted({_network(one) for one in record.members}))
    if record.member_count == 1:
        return f"{record.ref} is one network ({networks}) that finds atoms in microscope frames."
    return (
        f"{record.ref} is an ensemble of {record.member_count} networks ({networks}) that find "
        "atoms in microscope frames. Their disagreement is a measure of uncertainty."
    )


def _network(member: "MemberRecord") -> str:
    plain = {key: value for key, value in member.network.items() if key != "name"}
    rest = ", ".join(f"{key} {value}" for key, value in plain.items())
    return f"{member.network.get('name', 'network')}{f': {rest}' if rest else ''}"


def _facts(record: "Record", licence: str) -> list[tuple[str, str]]:
    kind = record.job.get("kind", "")
    facts = [
        ("Registered", f"{record.created:%Y-%m-%d %H:%M} UTC"),
        ("Aliases", ", ".join(record.aliases) or "none"),
        ("Made by", f"job {kind}" if kind else "a job that is not recorded"),
        ("Parent", record.parent or "none: trained from scratch"),
        ("Code", f"Manybeam {record.code_version or 'of unknown version'}"),
        ("Licence of the weights", licence or "not stated"),
        ("SHA-256 of the manifest", record.sha256),
        ("Signature", record.signature or "none"),
        ("Self-test", _self_test(record)),
    ]
    if record.archived is not None:
        facts.insert(1, ("Archived", f"{record.archived:%Y-%m-%d %H:%M} UTC"))
    return facts


def _self_test(record: "Record") -> str:
    version = record.version_ref
    if not record.self_test:
        return "none is stored"
    return f"stored, SHA-256 {record.self_test}; run it with: manybeam zoo test {version}"


def _by_condition(record: "Record", matrix: Matrix) -> CardTable:
    """Return the main table: one row for each condition, with interval and date."""
    columns = ("condition", "F1 (95 %)", "position error (pm)", "ECE", "best member", "classical",
               "frames", "measured", "scorer", "digest")  # fmt: skip
    rows = [_condition_row(matrix, condition, record.subject) for condition in matrix.conditions]
    note = (
        "F1 is 1 if every atom is found and nothing else is. ECE, the calibration error, is the "
        "mean gap between the probability of an atom and the share of such atoms that are right."
    )
    return CardTable("Scores by condition", columns, rows, note)


def _condition_row(matrix: Matrix, condition: str, row: int) -> Cells:
    values, score = matrix.values(row, condition), matrix.score(row, condition)
    best = matrix.best(condition)
    first = (
        f"{member_label(best)}: {_number(matrix.value(best, condition))}"
        if best is not None
        else ""
    )
    taken = f"{score.taken:%Y-%m-%d}" if score and score.taken else "unknown"
    return (
        condition,
        _interval(values),
        _number(values.get("rmse_pm"), 1),
        _number(values.get("ece")),
        first or "not measured",
        _number(matrix.value(CLASSICAL, condition)),
        _number(values.get("frames"), 0),
        taken if values else "not measured",
        (score.scorer if score else "") or "unknown",
        matrix.condition_digest(condition),
    )


def _by_member(matrix: Matrix) -> list[CardTable]:
    if not len(matrix) or len(matrix.scored) > MOST_COLUMNS:
        return []
    columns = ("condition", *(member_label(row) for row in matrix.scored))
    rows = [
        (condition, *(_number(matrix.value(row, condition)) for row in matrix.scored))
        for condition in matrix.conditions
    ]
    return [CardTable("F1 of each member", columns, rows)]


def _members(record: "Record", matrix: Matrix) -> CardTable:
    columns = ("member", "seed", "policy", "recipe", "parent", "mean F1", "SHA-256 of the weights")
    count = len(matrix.compared_on())
    rows = [
        (
            f"{one.index:02d}",
            str(one.seed),
            one.policy,
            one.recipe,
            one.parent or "none",
            _number(matrix.mean(one.index)),
            one.sha256,
        )
        for one in record.members
    ]
    note = (
        f"The mean F1 is over the {count} conditions on which every row with a mean was measured."
    )
    return CardTable("Members", columns, rows, note if count else "")


def _frame_sets(title: str, uses: "Iterable[FrameSetUse]") -> list[CardTable]:
    rows = [(one.url, one.digest) for one in uses]
    return [CardTable(title, ("FrameSet", "digest"), rows)] if rows else []


def _environment(record: "Record") -> list[CardTable]:
    named = [(name, record.environment[name]) for name in PACKAGES if name in record.environment]
    if not named:
        return []
    note = f"{len(record.environment)} packages are recorded. These have an effect on its answers."
    return [CardTable("Environment", ("package", "version"), named, note)]


def _use(record: "Record") -> list[tuple[str, str]]:
    ref, service = record.ref, settings().service_url.rstrip("/")
    python = (
        "import manybeam as mb\n\n"
        f'answer = mb.predict(frame, "{ref}", pixel_size_pm=7.8)  # pixel size of your frame\n'
        "answer.atoms  # y, x, class, probability, spread_y_px, spread_x_px, votes"
    )
    curl = (
        "curl --data-binary @frame.npy -H 'Content-Type: application/x-npy' \\\n"
        '  -H "Authorization: Bearer $MANYBEAM_TOKEN" \\\n'  # without tokens, none is read
        f"  '{service}/v1/predict/{ref}?pixel_size_pm=7.8' -o answer.npz"
    )
    command = f"manybeam predict scan.dm4 -e {ref} --atoms atoms.csv"
    return [("Python", python), ("Command line", command), ("The prediction service", curl)]


def _interval(values: dict[str, float]) -> str:
    if "f1" not in values:
        return "not measured"
    if "f1_low" not in values or "f1_high" not in values:
        return f"{values['f1']:.3f}"
    return f"{values['f1']:.3f} ({values['f1_low']:.3f} to {values['f1_high']:.3f})"


def _number(value: float | None, digits: int = 3) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def _markdown_table(table: CardTable) -> str:
    if not table.rows:
        return "none"
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(map(plain, line))} |" for line in lines)


def _note_html(note: str) -> str:
    """Return a note as HTML; HTML in the note is shown as text, and headings become h3."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False})
    tokens = parser.parse(note)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = "h3"
    rendered: str = parser.renderer.render(tokens, parser.options, {})
    return rendered
