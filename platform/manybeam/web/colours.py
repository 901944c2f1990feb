"""Viridis in 64 classes of a style sheet, each with a readable text colour.

The content security policy of the pages forbids inline styles, so a score becomes the name of a
class. `python -m manybeam.web.colours` prints the style sheet.
"""

import math

CLASS_COUNT = 64
NOT_MEASURED = "vn"


def shade(value: float | None, low: float = 0.0, high: float = 1.0) -> str:
    """Return the class of a value between two ends; a value outside takes the nearest end.

    Args:
        value: the score; None if it was not measured.
        low: value of the darkest class.
        high: value of the lightest; may be below `low`, for scores where less is better.

    Example:
        >>> shade(1.0), shade(0.0), shade(None), shade(0.02, low=0.1, high=0.0)
        ('v63', 'v00', 'vn', 'v50')
    """
    if value is None or math.isnan(value):
        return NOT_MEASURED
    share = (value - low) / (high - low) if high != low else 1.0
    return f"v{min(max(int(share * (CLASS_COUNT - 1) + 0.5), 0), CLASS_COUNT - 1):02d}"


def stylesheet() -> str:
    """Return the style sheet of all classes."""
    from matplotlib import colormaps

    table = colormaps["viridis"].resampled(CLASS_COUNT)
    return "".join(_rule(i, table(i)[:3]) for i in range(CLASS_COUNT))


def _rule(index: int, rgb: tuple[float, float, float]) -> str:
    background = "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
    # The class is written twice, so that it has priority over the style of table cells.
    return f".v{index:02d}.v{index:02d}{{background:{background};color:{text_on(rgb)}}}\n"


def text_on(rgb: tuple[float, float, float]) -> str:
    """Return black or white: the one with the higher contrast to a background.

    WCAG contrast is (lighter + 0.05) / (darker + 0.05); one of the two is always above 4.5.

    Example:
        >>> text_on((1.0, 1.0, 0.0)), text_on((0.2, 0.0, 0.3))
        ('#000', '#fff')
    """
    return "#000" if (luminance(rgb) + 0.05) ** 2 > 0.05 * 1.05 else "#fff"


def luminance(rgb: tuple[float, float, float]) -> float:
    """Return the relative luminance WCAG defines for sRGB parts between 0 and 1."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


if __name__ == "__main__":
    print(stylesheet(), end="")  # noqa: T201 - the output is the file
