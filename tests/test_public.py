"""What `import manybeam as mb` gives: the zoo, frames, answers, and how they look in a notebook."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manybeam as mb
from manybeam.data.frames import FrameSet
from manybeam.data.markup import facts_html
from manybeam.data.notebook import frameset_html
from manybeam.errors import Conflict, InvalidInput, UnknownCondition, UnknownRef, Unreachable
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.inference.graphs import Graphs
from manybeam.learn.nets.notebook import ensemble_html, prediction_html
from manybeam.public import OpenZoo, Version
from manybeam.spec import Condition
from manybeam.zoo.matrix import ENSEMBLE, Matrix, Score
from manybeam.zoo.registry import Zoo
from manybeam.zoo.reports.notebook import matrix_html, record_html

pytestmark = pytest.mark.slow

LOW, NOMINAL = "public-lowdose", "public-nominal"  # the server is shared: names of its own
WRITTEN = "graphene-60kv-nominal"  # one that the library knows
FRAME = np.random.default_rng(0).normal(100, 10, (48, 40)).astype(np.float32)


def scores(low_dose: float | None, nominal: float) -> list[Score]:
    found = [Score(ENSEMBLE, NOMINAL, "n" * 32, {"f1": nominal, "rmse_pm": 20 * nominal})]
    found += [Score(0, NOMINAL, "n" * 32, {"f1": nominal - 0.1})]
    if low_dose is not None:
        values = {"f1": low_dose, "f1_low": low_dose - 0.02, "f1_high": low_dose + 0.02}
        found.append(Score(ENSEMBLE, LOW, "l" * 32, {**values, "frames": 64}))
    return found


@pytest.fixture
def filled(zoo: Zoo, fill: Any, tiny_members: Callable[[int], list[Any]]) -> str:
    """Three versions: one good everywhere, one better at low dose, one never measured there."""

    def register(zoo: Zoo) -> None:
        for low_dose, nominal in ((0.6, 0.9), (0.8, 0.7), (None, 0.95)):
            job = {"kind": "train"}
            zoo.register("graphene", tiny_members(2), job=job, scores=scores(low_dose, nominal))
        zoo.set_alias("graphene", "serving", 1)

    fill(zoo, register)
    return "graphene"


@pytest.fixture
def served(
    embedded: Zoo,
    tmp_path: Path,
    use_settings: Callable[[dict[str, str]], None],
    tiny_members: Callable[[int], list[Any]],
) -> Zoo:
    """A zoo of the settings that serves `graphene`."""
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    embedded.register(
        "graphene", tiny_members(2), job={"kind": "train"}, scores=scores(0.6, 0.9), alias="serving"
    )
    return embedded


# -- the names ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "first",
    [
        pytest.param("", id="nothing else was imported"),
        pytest.param("import manybeam.zoo.matrix; ", id="the package was, under that name"),
    ],
)
def test_the_zoo_opens_by_its_name(first: str, tmp_path: Path) -> None:
    script = f"{first}import manybeam as mb; print(type(mb.zoo()).__name__, mb.zoo.Matrix)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.startswith("OpenZoo <class 'manybeam.zoo.matrix.Matrix'>")


def test_the_public_names_are_listed() -> None:
    assert {"predict", "simulate", "zoo", "__version__"} <= set(dir(mb))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="submarine"):
        _ = mb.submarine


# -- finding ------------------------------------------------------------------------------------
def test_what_is_found_is_ranked_where_it_was_asked_for(filled: str) -> None:
    found = OpenZoo().find(filled, condition=LOW, order="-f1")
    assert [row.ref for row in found.rows] == [f"{filled}@2", f"{filled}@1", f"{filled}@3"]
    assert [row.value for row in found.rows] == [0.8, 0.6, None]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        pytest.param("-f1", [3, 1, 2], id="high F1 first"),
        pytest.param("f1", [2, 1, 3], id="low F1 first"),
        pytest.param("rmse_pm", [2, 1, 3], id="small errors first"),
        pytest.param("-rmse_pm", [3, 1, 2], id="large errors first"),
        pytest.param("-created", [3, 2, 1], id="newest first"),
    ],
)
def test_a_minus_before_the_order_means_from_high_to_low(
    served: Zoo, tiny_members: Callable[[int], list[Any]], order: str, expected: list[int]
) -> None:
    for low_dose, nominal in ((0.8, 0.7), (None, 0.95)):
        served.register("graphene", tiny_members(2), job={}, scores=scores(low_dose, nominal))
    found = OpenZoo().find("graphene", condition=NOMINAL, order=order)
    assert [row.version for row in found.rows] == expected


def test_what_is_found_can_be_used(filled: str) -> None:
    best = OpenZoo().find(filled, condition=LOW)[0]
    assert best.ref == f"{filled}@2"
    assert best.matrix().value(ENSEMBLE, LOW) == 0.8
    assert best.predict(FRAME, pixel_size_pm=16.0).members == (0, 1)


def test_what_is_found_is_a_table(filled: str) -> None:
    found = OpenZoo().find(filled, condition=LOW)
    table = found.to_pandas()
    assert table["f1"].isna().tolist() == [False, False, True]
    assert (table.loc[f"{filled}@2", "low"], table.loc[f"{filled}@2", "frames"]) == (0.78, 64)
    shown = found._repr_html_()
    assert "0.780 to 0.820" in shown
    assert "not measured" in shown
    assert "3 of 3" in shown


def test_a_part_of_what_was_found_is_found_too(filled: str) -> None:
    found = OpenZoo().find(filled, condition=LOW)
    assert [one.ref for one in found[1:]] == [f"{filled}@1", f"{filled}@3"]


def test_members_can_be_found(filled: str) -> None:
    found = OpenZoo().find(filled, condition=NOMINAL, kind="members")
    assert found[0].ref == f"{filled}@3/00"
    assert found.rows[0].value == pytest.approx(0.85)


def test_while_the_zoo_is_away_what_was_known_is_found(served: Zoo, tmp_path: Path) -> None:
    before = OpenZoo().find("graphene")
    (tmp_path / "zoo.db").write_bytes(b"no database")
    after = OpenZoo().find("graphene")
    assert [row.ref for row in after.rows] == ["graphene@1"]
    assert after.as_of == before.as_of


def test_a_zoo_never_seen_and_away_is_said_to_be_away(
    tmp_path: Path, use_settings: Callable[[dict[str, str]], None]
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    (tmp_path / "zoo.db").write_bytes(b"no database")
    with pytest.raises(Unreachable):
        OpenZoo().find("graphene")


@pytest.mark.parametrize(
    "wrong", [pytest.param({"kind": "cats"}, id="kind"), pytest.param({"limit": 0}, id="limit")]
)
def test_what_cannot_be_asked_for_is_refused(served: Zoo, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        OpenZoo().find("graphene", **wrong)


# -- predicting ---------------------------------------------------------------------------------
def test_an_answer_is_that_of_the_ensemble(
    served: Zoo, tiny_members: Callable[[int], list[Any]]
) -> None:
    answer = mb.predict(FRAME, "graphene@serving", pixel_size_pm=16.0)
    expected = Ensemble(tiny_members(2), graphs=Graphs.here()).predict(FRAME, 16.0)
    np.testing.assert_array_equal(answer.mean_yx, expected.mean_yx)
    np.testing.assert_array_equal(answer.atoms, expected.atoms)


def test_networks_are_loaded_once_but_an_alias_is_asked_for_each_time(
    served: Zoo, tiny_members: Callable[[int], list[Any]]
) -> None:
    first, again = OpenZoo()["graphene"].ensemble(), OpenZoo()["graphene@1"].ensemble()
    served.register("graphene", tiny_members(1), job={}, alias="serving")
    assert first is again
    assert mb.predict(FRAME, "graphene", pixel_size_pm=16.0).members == (0,)


def test_one_member_can_be_asked(served: Zoo) -> None:
    assert mb.predict(FRAME, "graphene@1/01", pixel_size_pm=None).members == (1,)


@pytest.mark.parametrize("ref", ["graphene@9", "gold"])
def test_what_is_no_ensemble_is_refused(served: Zoo, ref: str) -> None:
    with pytest.raises(UnknownRef):
        mb.predict(FRAME, ref, pixel_size_pm=16.0)


def test_versions_can_be_compared_and_described(
    served: Zoo, tiny_members: Callable[[int], list[Any]]
) -> None:
    served.register("graphene", tiny_members(2), job={}, scores=scores(0.8, 0.9))
    version = OpenZoo()["graphene@1"]
    assert {d.condition: d.difference for d in version.compare("graphene@2")} == {
        LOW: pytest.approx(0.2),
        NOMINAL: 0.0,
    }
    assert version.card().startswith("# graphene@1\n")


# -- simulating ---------------------------------------------------------------------------------
@pytest.fixture
def library(use_settings: Callable[[dict[str, str]], None]) -> None:
    use_settings({"MANYBEAM_ZOO": str(Path(__file__).parents[1] / "zoo")})


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", [WRITTEN, "graphene-any"])
def test_frames_are_simulated_under_a_condition_or_a_policy(name: str, tmp_path: Path) -> None:
    frames = mb.simulate(name, count=2, out=tmp_path / "frames")
    assert (len(frames), frames.has_truth, frames.condition.id) == (2, True, name)
    assert FrameSet.open(tmp_path / "frames").digest == frames.digest


@pytest.mark.usefixtures("library")
def test_frames_that_are_there_are_not_overwritten_unless_asked(tmp_path: Path) -> None:
    mb.simulate(WRITTEN, count=1, out=tmp_path / "frames")
    with pytest.raises(Conflict):
        mb.simulate(WRITTEN, count=2, out=tmp_path / "frames")
    assert len(mb.simulate(WRITTEN, count=2, out=tmp_path / "frames", overwrite=True)) == 2


@pytest.mark.usefixtures("library")
def test_a_condition_nobody_wrote_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownCondition, match=WRITTEN):
        mb.simulate("graphene-60kv-nominale", out=tmp_path / "frames")


# -- in a notebook ------------------------------------------------------------------------------
def test_a_matrix_shows_its_numbers_and_what_has_none() -> None:
    shown = matrix_html(Matrix([*scores(0.6, 0.9), Score(1, LOW, "l" * 32, {"f1": 0.3})]))
    numbers = re.findall(r"<td[^>]*>(?:<strong>)?([^<]*)", shown)
    assert numbers == ["not measured", "0.800", "0.300", "not measured", "0.600", "0.900"]
    assert re.findall(r"<strong>(.*?)</strong>", shown) == ["0.800", "0.300"]


def test_a_large_matrix_shows_some_rows_and_says_how_many_more() -> None:
    rows = [Score(m, LOW, "l" * 32, {"f1": 0.5}) for m in (ENSEMBLE, *range(100))]
    shown = matrix_html(Matrix(rows))
    assert shown.count("<tr>") == 61
    assert ">ensemble<" in shown
    assert "41 more" in shown


def test_an_empty_matrix_says_what_to_do() -> None:
    assert "manybeam evaluate" in matrix_html(Matrix())


def test_frames_show_what_they_are_and_the_first_of_them(tmp_path: Path) -> None:
    condition = Condition(id="bench")
    frames = FrameSet.create(tmp_path / "frames", condition, FRAME.shape)
    assert "0 of 48 x 40 px" in frameset_html(frames)
    frames.append(FRAME[None], None, 12.5)
    shown = frameset_html(frames)
    assert all(word in shown for word in ("1 of 48 x 40 px", "bench", "12.5 pm", "image/png"))


def test_an_answer_shows_its_atoms_and_both_maps(
    tiny_members: Callable[[int], list[Any]],
) -> None:
    answer = Ensemble(tiny_members(2)).predict(FRAME, 16.0)
    shown = prediction_html(answer)
    assert f">{len(answer.atoms)}</td>" in shown
    assert shown.count("image/png") == 2
    assert prediction_html(answer.subset([0])).count("image/png") == 1


def test_an_ensemble_shows_its_members(tiny_members: Callable[[int], list[Any]]) -> None:
    shown = ensemble_html(Ensemble(tiny_members(3)))
    assert all(f">{index:02d}</td>" in shown for index in range(3))


def test_a_version_shows_what_it_is(served: Zoo) -> None:
    version = OpenZoo()["graphene@1"]
    assert version._repr_html_() == record_html(version.record)
    assert version.record.sha256 in version._repr_html_()


def test_the_zoo_shows_what_is_in_it(served: Zoo) -> None:
    assert "graphene@1" in OpenZoo()._repr_html_()
    assert [one.ref for one in OpenZoo()] == ["graphene@1"]


def test_text_of_others_is_no_html() -> None:
    assert "<img" not in facts_html("<img src=x>", [("<img src=x>", "<img src=x>")])


@pytest.mark.parametrize("thing", ["matrix", "record", "ensemble", "answer", "version", "frames"])
def test_a_notebook_shows_it_by_itself(served: Zoo, tmp_path: Path, thing: str) -> None:
    version: Version = OpenZoo()["graphene@1"]
    ensemble = version.ensemble()
    shown: dict[str, Any] = {
        "matrix": version.matrix(),
        "record": version.record,
        "ensemble": ensemble,
        "answer": ensemble.predict(FRAME, None),
        "version": version,
        "frames": FrameSet.create(tmp_path / "frames", Condition(id="bench"), (8, 8)),
    }
    assert shown[thing]._repr_html_().startswith("<div>")


def test_a_matrix_plots_itself(served: Zoo) -> None:
    assert OpenZoo()["graphene"].matrix().plot("rmse_pm").axes
