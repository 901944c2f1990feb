"""Words in a search that describe imaging: "low dose" ranks by the conditions with few electrons.

Each phrase is a bound on quantities of conditions. So the result can be explained in a line, and
it costs one comparison for each condition.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

Numbers = Mapping[str, float]

# Electrons that fall on a pixel: noise depends on it, and not on the dose alone.
ELECTRONS = "electrons_per_pixel"
LABELS = {
    "dose_e_per_a2": ("dose", " e/Å²"),
    "beam_kv": ("beam", " kV"),
    "defocus_nm": ("defocus", " nm"),
    "astigmatism_nm": ("astigmatism", " nm"),
    "source_fwhm_pm": ("source", " pm"),
    "contamination": ("contamination", ""),
    "pixel_size_pm": ("pixel size", " pm"),
    "row_jitter_pm": ("row jitter", " pm"),
    "drift_pm_per_row": ("drift", " pm a row"),
    ELECTRONS: ("electrons in a pixel", ""),
}


@dataclass(frozen=True)
class Bound:
    """A bound on one quantity; its sign does not count.

    Attributes:
        quantity: name of the quantity with its unit.
        least, most: smallest and largest value; None for no bound.
        share: whether they are shares of the highest value among conditions of the same sample:
            a low dose for graphene is a high one for MoS2.
    """

    quantity: str
    least: float | None = None
    most: float | None = None
    share: bool = False

    @property
    def words(self) -> str:
        """The bound for people."""
        label, unit = LABELS[self.quantity]
        value, word = (self.most, "at most") if self.most is not None else (self.least, "at least")
        if self.share:
            return f"{label} {word} {value:.0%} of the highest for the sample".replace("%", " %")
        return f"{label} {word} {value:,.12g}{unit}"

    def holds(self, numbers: Numbers, peers: Sequence[Numbers]) -> bool:
        """Return whether the quantity is known and within the bound."""
        value = _value(numbers, self.quantity)
        if value is None:
            return False
        known = [_value(one, self.quantity) for one in peers] if self.share else []
        highest = max((one for one in known if one is not None), default=value)
        scale = highest if self.share else 1.0
        return (self.least is None or value >= self.least * scale) and (
            self.most is None or value <= self.most * scale
        )


@dataclass(frozen=True)
class Phrase:
    """Words that describe conditions.

    Attributes:
        name: the words that pages show.
        others: other words with the same meaning.
        bounds: a condition fits if any of them holds.
    """

    name: str
    others: tuple[str, ...]
    bounds: tuple[Bound, ...]

    @property
    def meaning(self) -> str:
        """What it means, for people.

        Example:
            >>> PHRASES[1].name, PHRASES[1].meaning
            ('low dose', 'dose at most 33 % of the highest for the sample')
        """
        return " or ".join(bound.words for bound in self.bounds)

    def fits(self, numbers: Numbers, peers: Sequence[Numbers]) -> bool:
        """Return whether it describes a condition.

        Args:
            numbers: the quantities of the condition.
            peers: those of all conditions of the same sample.
        """
        return any(bound.holds(numbers, peers) for bound in self.bounds)


PHRASES = (
    Phrase(
        "very low dose", ("extremely low dose",), (Bound("dose_e_per_a2", most=0.1, share=True),)
    ),
    Phrase(
        "low dose",
        ("few electrons", "beam sensitive"),
        (Bound("dose_e_per_a2", most=0.33, share=True),),
    ),
    Phrase("high dose", ("many electrons",), (Bound("dose_e_per_a2", least=0.67, share=True),)),
    Phrase("low kV", ("low voltage",), (Bound("beam_kv", most=80),)),
    Phrase("high kV", ("high voltage",), (Bound("beam_kv", least=200),)),
    Phrase("noisy", ("noise", "grainy"), (Bound(ELECTRONS, most=0.33, share=True),)),
    Phrase("defocused", ("defocussed", "out of focus"), (Bound("defocus_nm", least=3),)),
    Phrase(
        "blurred",
        ("blurry", "unsharp"),
        (
            Bound("defocus_nm", least=3),
            Bound("astigmatism_nm", least=1.5),
            Bound("source_fwhm_pm", least=100),
        ),
    ),
    Phrase("dirty", ("contaminated", "contamination"), (Bound("contamination", least=0.5),)),
    Phrase("clean", (), (Bound("contamination", most=0.1),)),
    Phrase("coarse", ("coarse pixels", "large pixels"), (Bound("pixel_size_pm", least=20),)),
    Phrase("fine pixels", ("small pixels", "fine sampling"), (Bound("pixel_size_pm", most=12),)),
    Phrase(
        "distorted",
        ("drifting", "jitter"),
        (Bound("row_jitter_pm", least=15), Bound("drift_pm_per_row", least=1)),
    ),
)
# Text in quotation marks, and parts of names as in graphene-60kv-dirty, are not phrases.
_QUOTED = re.compile(r'"[^"]*"')


def phrases_in(text: str) -> tuple[str, tuple[Phrase, ...]]:
    """Return a text without its phrases, and the phrases.

    Text in quotation marks stays as it is.

    Example:
        >>> rest, found = phrases_in("graphene HAADF low-dose blurry")
        >>> rest, [one.name for one in found]
        ('graphene HAADF', ['low dose', 'blurred'])
        >>> phrases_in('graphene "low dose"')
        ('graphene "low dose"', ())
    """
    found: dict[Phrase, None] = {}
    return _outside_quotes(text, lambda part: _without(part, found)), tuple(found)


def without_phrase(text: str, phrase: Phrase) -> str:
    """Return a text without one phrase; other phrases and text in quotation marks stay.

    Example:
        >>> without_phrase("low dose graphene noisy", PHRASES[1])
        'graphene noisy'
        >>> without_phrase('"low dose" low dose graphene', PHRASES[1])
        '"low dose" graphene'
    """

    def without(part: str) -> str:
        return _pattern(phrase).sub(" ", unicodedata.normalize("NFKC", part))

    return _outside_quotes(text, without)


def _outside_quotes(text: str, change: Callable[[str], str]) -> str:
    """Return a text whose parts outside quotation marks were changed, with single blanks."""
    kept, start = [], 0
    for quoted in [*_QUOTED.finditer(text), None]:
        end = quoted.start() if quoted else len(text)
        kept += [change(text[start:end]), quoted.group() if quoted else ""]
        start = quoted.end() if quoted else end
    return " ".join("".join(kept).split())


def _without(text: str, found: dict[Phrase, None]) -> str:
    """Return a text without its phrases, which are added to `found`."""
    text = unicodedata.normalize("NFKC", text)
    for phrase in PHRASES:
        text, count = _pattern(phrase).subn(" ", text)
        if count:
            found[phrase] = None
    return text


@cache
def _pattern(phrase: Phrase) -> re.Pattern[str]:
    ways = sorted((phrase.name, *phrase.others), key=len, reverse=True)
    words = "|".join(r"[\s_-]+".join(map(re.escape, way.split())) for way in ways)
    return re.compile(rf"(?<![\w@./-])(?:{words})(?![\w@./-])", re.IGNORECASE)


def _value(numbers: Numbers, quantity: str) -> float | None:
    if quantity == ELECTRONS:
        dose, size_pm = numbers.get("dose_e_per_a2"), numbers.get("pixel_size_pm")
        return None if dose is None or size_pm is None else dose * (size_pm / 100) ** 2
    value = numbers.get(quantity)
    return None if value is None else abs(value)
