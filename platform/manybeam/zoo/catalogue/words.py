"""Words people look for an ensemble by: those it is indexed under, and those a query asks for."""

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
    """Return the different words of some texts, in lower case, with blanks between.

    A version is also one word with the end of its name: only that tells `graphene@3` from
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
    """Return what a person may call a condition by: kind of imaging, sample, voltage.

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
    """Return what SQLite's full-text search is asked for a text; "" if it holds no word.

    Every word has to match the beginning of one that is indexed. Two words that stand side by
    side may also be indexed as one: "low dose" finds `lowdose`. A voltage and a version are
    one word: "60 kV" finds nothing that was measured at 80 kV and is called 60.

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
