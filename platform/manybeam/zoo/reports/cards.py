"""Model cards: what a version is, what it was made from, how good it is where, and where it fails.

Made from the record and the matrix alone, so that a card never says what was not measured. A note a
person wrote about the structure (`cards/*.md` of the zoo folder) is put in as it stands.
"""

import base64
import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manybeam.settings import settings
from manybeam.zoo.matrix import CLASSICAL, Matrix, member_label

if TYPE_CHECKING:
    from manybeam.zoo.matrix import FrameSetUse
    from manybeam.zoo.records import MemberRecord, Record

POOR_F1 = 0.8  # below, every fifth atom or so is wrong: a card says so in words
POOR_ECE = 0.1
FEW_FRAMES = 16
MOST_COLUMNS = 12  # members beyond which the numbers of each are left to the picture
PACKAGES = ("manybeam", "torch", "numpy", "scipy", "mlflow", "ray", "zarr", "safetensors")
_TEMPLATE = Path(__file__).with_name("card.html.jinja")

Cells = Sequence[str]


@dataclass(frozen=True)
class Table:
    """A heading, the names of the columns and the rows below them."""

    title: str
    columns: Cells
    rows: Sequence[Cells]
    note: str = ""


@dataclass(frozen=True)
class Card:
    """What a card says, before it is Markdown or HTML.

    Attributes:
        title: the reference.
        lead: what it is, in a sentence.
        facts: name and value of what there is one of.
        limits: where it fails, in words.
        tables: scores by condition, by member, members, inputs, environment.
        use: name and text of each way to use it.
        job: the job that made it, as JSON.
        note: what a person wrote about the structure, as Markdown; "" if nobody did.
    """

    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    limits: Cells
    tables: Sequence[Table]
    use: Sequence[tuple[str, str]]
    job: str
    note: str = field(default="")


def card_markdown(
    record: "Record", matrix: Matrix, *, note: str = "", licence: str = "", picture: str = ""
) -> str:
    """Return the card of a version as Markdown.

    Args:
        record: the version, as the zoo resolves it.
        matrix: its scores.
        note: what a person wrote about the structure; see `note_for`.
        licence: of the weights; said to be unknown if left out.
        picture: where the picture of the matrix lies, beside the card; left out if "".
    """
    card = describe(record, matrix, note=note, licence=licence)
    parts = [f"# {_line(card.title)}", _line(card.lead)]
    parts.append("\n".join(f"- **{_line(name)}**: {_line(value)}" for name, value in card.facts))
    parts += ["## Where it fails", "\n".join(f"- {_line(text)}" for text in card.limits)]
    if picture:
        parts.append(f"![F1 of {_line(card.title)}, members by conditions]({picture})")
    for table in card.tables:
        parts += [f"## {table.title}", *filter(None, [table.note]), _markdown_table(table)]
    parts.append("## How to use it")
    parts += [f"{name}\n\n{_fenced(text)}" for name, text in card.use]
    parts += ["## The job that made it", _fenced(card.job)]
    if card.note:
        parts += ["## About the structure", re.sub(r"^#", "###", card.note, flags=re.MULTILINE)]
    return "\n\n".join(parts).rstrip() + "\n"


def card_html(
    record: "Record", matrix: Matrix, *, note: str = "", licence: str = "", picture: bool = True
) -> str:
    """Return the card of a version as one HTML page that asks for nothing outside itself.

    All text is escaped. Style and picture are inside the page: served under a strict policy it
    needs `style-src 'unsafe-inline'; img-src data:`.

    Args:
        record: the version, as the zoo resolves it.
        matrix: its scores.
        note: what a person wrote about the structure; see `note_for`.
        licence: of the weights; said to be unknown if left out.
        picture: whether to put in the picture of the matrix; the numbers are there either way.
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
    """Return what a person wrote about the structure of a version; "" if nobody did.

    It is the file of `folder/cards` that is called as the ensemble, its policies or the conditions
    it was measured on begin: `graphene.md` for `graphene-60kv`.

    Args:
        record: the version.
        folder: the zoo folder (`Library.folder`).
        conditions: ids of the conditions it was measured on.
    """
    names = [record.name, *(member.policy for member in record.members), *conditions]
    for stem in dict.fromkeys(re.split(r"[-._]", name)[0] for name in names):
        path = folder / "cards" / f"{stem}.md"
        if path.is_file():
            return path.read_text(encoding="utf-8").strip()
    return ""


def describe(record: "Record", matrix: Matrix, *, note: str = "", licence: str = "") -> Card:
    """Return what the card of a version says."""
    tables = [
        _by_condition(record, matrix),
        *_by_member(matrix),
        _members(record, matrix),
        *_frame_sets("Frames it was trained on", record.inputs),
        *_frame_sets("Recorded frames it was measured on", matrix.frame_sets),
        *_environment(record),
    ]
    return Card(
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
    """Return in words where a version fails, and what nobody knows about it.

    Args:
        record: the version, or one member of it.
        matrix: its scores.
    """
    if not len(matrix):
        return ["Nothing was measured: nobody knows how good it is under any condition."]
    row = record.subject
    weak, blurred, few, beaten, unknown = [], [], [], [], []
    for condition in matrix.conditions:
        values, by_hand = matrix.values(row, condition), matrix.value(CLASSICAL, condition)
        f1 = values.get("f1")
        if f1 is None:
            unknown.append(condition)
            continue
        weak += [f"{condition}: {_interval(values)}"] if f1 < POOR_F1 else []
        beaten += [f"{condition}: {by_hand:.3f} against {f1:.3f}"] if (by_hand or 0) > f1 else []
        off = values.get("ece", 0.0)
        blurred += [f"{condition}: {off:.2f}"] if off > POOR_ECE else []
        few += [condition] if 0 < values.get("frames", FEW_FRAMES) < FEW_FRAMES else []
    told = [
        (f"F1 is below {POOR_F1:g} on", weak),
        ("A classical detector tuned to the condition does better on", beaten),
        (f"Its probabilities are off by more than {POOR_ECE:g} (ECE) on", blurred),
        (f"Fewer than {FEW_FRAMES} test frames, so an uncertain score, on", few),
        ("Not measured, though its members or rivals were, on", unknown),
        ("Older scores, under numbers the condition no longer has, do not count for",
         sorted({condition for condition, _ in matrix.superseded})),
        ("Members that were planned and failed:", list(record.failed)),
    ]  # fmt: skip
    said = [f"{words} {'; '.join(which)}." for words, which in told if which]
    said.append("Any condition that is not named in this card was not measured.")
    return said


def _lead(record: "Record") -> str:
    networks = "; ".join(sorted({_network(one) for one in record.members}))
    if record.member_count == 1:
        return f"{record.ref} is one network ({networks}) that finds atoms in microscope frames."
    return (
        f"{record.ref} is an ensemble of {record.member_count} networks ({networks}) that find "
        "atoms in microscope frames and say how far they disagree."
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
        return "no answers were kept to compare with"
    return f"answers kept, SHA-256 {record.self_test}; compare with: manybeam zoo test {version}"


def _by_condition(record: "Record", matrix: Matrix) -> Table:
    """Return the table a reader wants first: one line a condition, with interval and date."""
    columns = ("condition", "F1 (95 %)", "position error (pm)", "ECE", "best member", "classical",
               "frames", "measured", "scorer", "digest")  # fmt: skip
    rows = [_condition_row(matrix, condition, record.subject) for condition in matrix.conditions]
    return Table("Scores by condition", columns, rows)


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


def _by_member(matrix: Matrix) -> list[Table]:
    if not len(matrix) or len(matrix.scored) > MOST_COLUMNS:
        return []
    columns = ("condition", *(member_label(row) for row in matrix.scored))
    rows = [
        (condition, *(_number(matrix.value(row, condition)) for row in matrix.scored))
        for condition in matrix.conditions
    ]
    return [Table("F1 of each member", columns, rows)]


def _members(record: "Record", matrix: Matrix) -> Table:
    columns = ("member", "seed", "policy", "recipe", "parent", "mean F1", "SHA-256 of the weights")
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
    return Table("Members", columns, rows)


def _frame_sets(title: str, uses: "Iterable[FrameSetUse]") -> list[Table]:
    rows = [(one.url, one.digest) for one in uses]
    return [Table(title, ("FrameSet", "digest"), rows)] if rows else []


def _environment(record: "Record") -> list[Table]:
    named = [(name, record.environment[name]) for name in PACKAGES if name in record.environment]
    if not named:
        return []
    note = f"{len(record.environment)} packages are recorded; these decide what it answers."
    return [Table("Environment", ("package", "version"), named, note)]


def _use(record: "Record") -> list[tuple[str, str]]:
    ref, service = record.ref, settings().service_url.rstrip("/")
    python = (
        "import manybeam as mb\n\n"
        f'answer = mb.predict(frame, "{ref}", pixel_size_pm=7.8)  # edge of a pixel of your frame\n'
        "answer.atoms  # y, x, class, probability, spread_y_px, spread_x_px, votes"
    )
    curl = (
        "curl --data-binary @frame.npy -H 'Content-Type: application/x-npy' \\\n"
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


def _line(text: str) -> str:
    """Return text that stays on its line and in its cell, and is no HTML."""
    flat = " ".join(text.split())
    return re.sub(r"([|\[\]])", r"\\\1", flat).replace("<", "&lt;")


def _markdown_table(table: Table) -> str:
    if not table.rows:
        return "none"
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(map(_line, line))} |" for line in lines)


def _fenced(text: str) -> str:
    """Return text as a block of code, whatever backticks are in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _note_html(note: str) -> str:
    """Return a note as HTML: headings, paragraphs, bold and code; anything else as it stands."""
    parts: list[Any] = []
    for block in re.split(r"\n\s*\n", note) if note else ():
        text = html.escape(" ".join(block.split()))
        text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
        text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
        heading = re.fullmatch(r"#+ (.*)", text)
        parts.append(f"<h3>{heading[1]}</h3>" if heading else f"<p>{text}</p>")
    return "\n".join(parts)
