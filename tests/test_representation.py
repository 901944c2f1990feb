"""Objects find what draws them, and it draws what it says."""

import inspect

import pytest

# Each module defines classes that a notebook shows.
import manybeam.data.frames
import manybeam.learn.nets.ensemble
import manybeam.zoo.matrix
import manybeam.zoo.records  # noqa: F401
from manybeam.data.representation import Drawable, renderer

SHOWN = [
    pytest.param(kind, form, id=f"{kind.__name__}-{form}")
    for kind in Drawable.__subclasses__()
    if kind.__module__.startswith("manybeam.") and kind.__name__ != "Pair"
    for form in kind.renderers
]


@pytest.mark.parametrize(("kind", "form"), SHOWN)
def test_a_renderer_draws_the_class_that_names_it(kind: type[Drawable], form: str) -> None:
    first = next(iter(inspect.signature(renderer(kind, form)).parameters.values()))
    assert first.annotation is kind


def test_every_class_that_a_notebook_shows_has_html() -> None:
    assert {kind.values[0].__name__ for kind in SHOWN} >= {
        "Ensemble",
        "FrameSet",
        "Matrix",
        "Prediction",
        "Record",
    }


def test_a_class_inherits_the_renderers_that_it_does_not_name() -> None:
    class Parent(Drawable, html="json:dumps", figure="json:loads"):
        pass

    class Child(Parent, figure="json:dump"):
        pass

    assert Child.renderers == {"html": "json:dumps", "figure": "json:dump"}


def test_a_form_that_nobody_draws_is_a_lookup_error() -> None:
    with pytest.raises(LookupError):
        renderer(Drawable, "figure")
