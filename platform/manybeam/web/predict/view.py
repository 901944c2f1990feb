"""What the page of a result says: facts of the frame, who answers and why, and the same by hand."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from manybeam.predictor.answer import AUTO
from manybeam.predictor.answer_files import verdict_words
from manybeam.settings import settings
from manybeam.spec.imaging import quantity_bounds
from manybeam.web.predict.results import Facts, Result
from manybeam.web.service import Sent

BEST = 3  # members that the ranking shows


@dataclass(frozen=True)
class Shown:
    """The words of a result with an answer.

    Attributes:
        facts: (name, value) of the frame.
        meta: what the service says of the answer.
        verdict: in words.
        snippets: (name, text) of the same request elsewhere.
    """

    facts: tuple[tuple[str, str], ...]
    meta: Mapping[str, Any]
    verdict: str
    snippets: tuple[tuple[str, str], ...]


def show(result: Result) -> Shown:
    """Return what the page says of a result."""
    meta = {} if result.facts.error else result.meta
    return Shown(
        tuple(frame_facts(result.facts, meta)),
        meta,
        verdict_words(str(meta.get("verdict") or "")),
        snippets(result.facts, meta),
    )


def frame_facts(facts: Facts, meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts of a frame: of its file, and the pixel size that was used."""
    found = [("FrameSet" if facts.is_stored else "File", facts.name)]
    if facts.frame is not None:
        found.append(("Frame", f"{facts.frame} of {facts.frame_count} (the first is 0)"))
    if not facts.is_stored:
        found.append(("Format", facts.format))
    rows, columns = facts.shape
    found.append(("Size", f"{rows} × {columns} px"))
    found.append(("Pixel size", size_words(facts, meta)))
    if facts.condition:
        found.append(("Condition", facts.condition))
    units = quantity_bounds()
    for name, value in facts.recorded.items():
        unit = "" if units[name][2] == "1" else units[name][2]
        plain = name.rpartition(".")[2].removesuffix(f"_{unit.lower()}").replace("_", " ")
        found.append((plain[:1].upper() + plain[1:], f"{value:.5g} {unit}".strip()))
    return found


def size_words(facts: Facts, meta: Mapping[str, Any]) -> str:
    """Return the pixel size, and who says it."""
    size_pm, error_pm = meta.get("pixel_size_pm"), meta.get("pixel_size_error_pm")
    if size_pm is not None and error_pm is not None:
        return f"{size_pm:.4g} ± {error_pm:.2g} pm, inferred from the lattice"
    if facts.stated_pm is not None:
        beside = f"; the file says {facts.file_size_pm:.4g} pm" if facts.file_size_pm else ""
        return f"{facts.stated_pm:.4g} pm, given by you{beside}"
    if facts.file_size_pm is not None:
        return f"{facts.file_size_pm:.4g} pm, from the {'store' if facts.is_stored else 'file'}"
    return "not in the file"


def best_members(ranking: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the best members of a ranking, as `manybeam select` ranks them."""
    return list(ranking["candidates"][:BEST])


def snippets(facts: Facts, meta: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the same request in Python, by curl and on the command line."""
    url, name = settings().service_url, facts.name if facts.is_sent_whole else "frame.npy"
    size_pm = facts.stated_pm or (None if facts.is_sent_whole else facts.file_size_pm)
    if size_pm is None and meta.get("pixel_size_error_pm") is None:
        known = meta.get("pixel_size_pm")
        python_pm = known if known is not None else facts.file_size_pm
    else:
        python_pm = size_pm
    sent = Sent(b"", name, size_pm, facts.condition, is_size_trusted=facts.is_size_trusted)
    path = f"{url}/v1/predict/{quote(facts.ref, safe='@/')}"
    query = urlencode({**sent.query, "want": "atoms,members"})
    curl = (
        f"curl --data-binary {shlex.quote('@' + name)} -H 'Accept: application/json' \\\n"
        "  -H 'Content-Type: application/octet-stream' \\\n"
        f"  {shlex.quote(f'{path}?{query}')}"
    )
    size = f", pixel_size_pm={python_pm:.9g}" if python_pm else ""
    python = (
        "import numpy as np\nfrom manybeam_client import Session\n\n"
        f'frame = np.load("frame.npy")\n'
        f'with Session("{url}", ensemble="{facts.ref}") as service:\n'
        f"    answer = service.predict(frame{size})\n"
        "print(len(answer.atoms), answer.why)"
    )
    words = ["manybeam", "predict", name, "-e", facts.ref]
    words += ["--pixel-size-pm", f"{size_pm:.9g}"] if size_pm else []
    command = shlex.join([*words, "--atoms", "atoms.csv"])
    return ("Command line", command), ("curl", curl), ("Python", python)


def stem(facts: Facts) -> str:
    """Return the beginning of the names of downloads, from the name of the source."""
    name = Path(facts.name).stem if not facts.is_stored else facts.name.replace("/", "-")
    plain = "".join(
        one if one.isascii() and (one.isalnum() or one in "-_") else "_" for one in name
    )
    number = f"-{facts.frame:03d}" if facts.frame is not None else ""
    return f"{plain[:80] or AUTO}{number}"
