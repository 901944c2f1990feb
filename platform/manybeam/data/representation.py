"""How an object finds the function that draws it.

A module that draws, such as `data.notebook`, imports the classes that it draws. A class never
imports such a module. It registers its functions as text, and the module is imported when an object
is drawn for the first time.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar


class Drawable:
    """A class whose objects a notebook shows as HTML.

    Each function is named as `module:function`. It takes the object first.

    Args:
        html: returns the object as HTML without script.
        figure: returns the object as a matplotlib `Figure`; "" if there is no such picture.

    Example:
        >>> class Pair(Drawable, html="manybeam.data.markup:table_html"):
        ...     pass
        >>> renderer(Pair, "html").__name__
        'table_html'
    """

    renderers: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, *, html: str = "", figure: str = "") -> None:
        """Register the functions of a class; it inherits those that it does not name."""
        super().__init_subclass__()
        named = {"html": html, "figure": figure}
        cls.renderers = {**cls.renderers, **{form: name for form, name in named.items() if name}}

    def _repr_html_(self) -> str:
        return str(renderer(type(self), "html")(self))


def renderer(kind: type[Drawable], form: str) -> Callable[..., Any]:
    """Return the function that draws objects of a class.

    Args:
        kind: the class.
        form: `html` or `figure`.

    Raises:
        LookupError: the class has no function for this form.
    """
    name = kind.renderers[form]
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found
