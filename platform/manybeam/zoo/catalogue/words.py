"""Words for the search of ensembles: those of the index, and those of a query."""

import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from manybeam.errors import InvalidInput

if TYPE_CHECKING:
    from manybeam.spec import Condition

WORD_LIMIT = 32
_WORD = re.compile(r"[^\W_]+")
_VOLTAGE = re.compile(r"([0-9])\s+kv\b")
_VERSION = re.compile(r"(?<=\w)@(?=[0-9])")


def words_of(texts: Iterable[str]) -> str:
    """Return the different words of some texts, in lower case, separated by blanks.

    A version is also one word with the end of its name. This distinguishes `graphene@3` from
    `graphene@2` that is made by `tiny@3`.

    Example:
        >>> words_of(["graphene@3", "graphene-60kv-lowdose"])
        'graphene 3 graphene3 60kv lowdose'
    """
    words: dict[str, None] = {}
    for text in texts:
        words |= dict.fromkeys(_words(text))
        if "@" in text:
            words |= dict.fromkeys(_words(_VERSION.sub("", text)))
    return " ".join(words)


def words_of_condition(condition: "Condition") -> str:
    """Return the words of a condition: kind of imaging, sample, voltage.

    Example:
        >>> from manybeam.spec import Condition
        >>> words_of_condition(Condition(id="a", modality="haadf", optics={"beam_kv": 60}))
        'haadf unknown 60kv kv'
    """
    sample, beam_kv = condition.sample, condition.optics.beam_kv
    voltage = f"{beam_kv:g}kv kv" if isinstance(beam_kv, float) else ""
    element = sample.element or ""
    return words_of([condition.modality, sample.structure, sample.material, element, voltage])


def query_of(text: str) -> str:
    """Return the query of a text for SQLite's full-text search; "" if it has no word.

    Every word must be the beginning of a word of the index. Two neighbouring words may also be one
    word of the index: "low dose" finds `lowdose`. A voltage and a version are one word: "60 kV"
    does not find a row that was measured at 80 kV and has 60 in its name.

    Raises:
        InvalidInput: more than 32 words.

    Example:
        >>> query_of('HAADF 60 kV "')
        '("haadf"* OR "haadf60kv"*) AND ("60kv"* OR "haadf60kv"*)'
    """
    found = _words(_VERSION.sub("", _VOLTAGE.sub(r"\1kv", _plain(text))))
    if len(found) > WORD_LIMIT:
        raise InvalidInput(f"a search for {len(found)} words", f"at most {WORD_LIMIT}", "use fewer")
    pairs = [before + after for before, after in pairwise(found)]
    asked = []
    for place, word in enumerate(found):
        ways = [word, *pairs[max(place - 1, 0) : place + 1]]
        asked.append("(" + " OR ".join(f'"{way}"*' for way in ways) + ")")
    return " AND ".join(asked)


def _words(text: str) -> list[str]:
    return _WORD.findall(_plain(text))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
