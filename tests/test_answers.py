"""How answers are printed and written: lines, CSV, pictures; verdict and elements everywhere."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import EllipseCollection

from manybeam.cli import answers
from manybeam.data.io.frame import frame_of
from manybeam.data.io.reading import read_truth_csv
from manybeam.errors import InvalidInput
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.member import Member
from manybeam.learn.nets.networks import build
from manybeam.predictor.answer import Answer, Question
from manybeam.predictor.condition_distance import Near
from manybeam.predictor.f1.predicted import PredictedF1
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.reasons import answer_reason
from manybeam.predictor.versions.loaded import LoadedVersion, OneVersion
from manybeam.serve.content import answer_meta, arrays
from manybeam.serve.query import RequestQuery
from manybeam.serve.wire import Frames, write_json
from manybeam.spec.recipe import MemberPlan, Network, Recipe, TileSpec
from manybeam.zoo.reports.answer_figure import answer_figure

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def noise_yx() -> np.ndarray:
    return np.random.default_rng(0).poisson(50, (96, 96)).astype(np.float32)


@pytest.fixture(scope="module")
def of_elements(noise_yx: np.ndarray) -> Answer:
    """An answer of members that distinguish Mo, S and V, to a frame of noise."""
    plans = tuple(MemberPlan(seed=seed, policy="mos2-nominal") for seed in range(2))
    recipe = Recipe(
        id="tiny",
        network=Network(filters=2, levels=2, classes=3),
        tiles=TileSpec(elements=("Mo", "S", "V")),
        members=plans,
    )
    members = []
    for plan in plans:
        with torch.random.fork_rng():
            torch.manual_seed(plan.seed)
            weights = build(recipe.network).state_dict()
        loud = {n: v * 3 if v.is_floating_point() else v.clone() for n, v in weights.items()}
        members.append(
            Member(plan.seed, plan.seed, plan.policy, recipe, loud, (0.5,), 0.1, "0" * 32)
        )
    answer = Predictor(OneVersion(LoadedVersion(Ensemble(members)))).answer(
        frame_of(noise_yx, 16.0, origin="scan.tif"), Question("mos2")
    )
    assert len(answer.atoms)
    return answer


@pytest.fixture(scope="module")
def of_one_kind(noise_yx: np.ndarray, tiny_members: Callable[[int], list[Any]]) -> Answer:
    predictor = Predictor(OneVersion(LoadedVersion(Ensemble(tiny_members(2)))))
    return predictor.answer(frame_of(noise_yx, 16.0, origin="scan.tif"), Question("graphene"))


def rows_of(answer: Answer, folder: Path) -> list[dict[str, str]]:
    answers.write_atoms(folder / "atoms.csv", [answer])
    return list(csv.DictReader((folder / "atoms.csv").read_text().splitlines()))


def test_an_atom_in_the_csv_has_its_element_its_verdict_and_the_predicted_f1(
    of_elements: Answer, tmp_path: Path
) -> None:
    rows = rows_of(of_elements, tmp_path)
    assert [row["element"] for row in rows] == list(of_elements.elements)
    assert {row["element"] for row in rows} <= {"Mo", "S", "V"}
    assert {row["verdict"] for row in rows} == {of_elements.verdict}
    known = of_elements.predicted_f1
    assert known is not None
    assert float(rows[0]["predicted_f1"]) == pytest.approx(known.f1, abs=1e-4)


def test_a_zarr_group_of_another_process_is_refused_and_stays(
    of_one_kind: Answer, tmp_path: Path
) -> None:
    target = str(tmp_path / "answer.zarr")
    answers.write_zarr(target, [of_one_kind])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidInput, match="is not empty"):
        answers.write_zarr(target, [of_one_kind])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_part_of_an_answer_is_removed(of_one_kind: Answer, tmp_path: Path) -> None:
    broken: Any = None  # the second answer cannot be written
    with pytest.raises(AttributeError):
        answers.write_zarr(str(tmp_path / "answer.zarr"), [of_one_kind, broken])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_unknown_verdict_says_what_is_unknown(of_one_kind: Answer) -> None:
    assert of_one_kind.selection is not None
    unknown = replace(of_one_kind.selection, verdict="unknown")
    (line,) = answers.lines(replace(of_one_kind, selection=unknown), is_verbose=False)
    assert line.endswith(", drift unknown")


def test_the_class_in_the_csv_is_a_whole_number_and_what_is_unknown_an_empty_cell(
    of_one_kind: Answer, tmp_path: Path
) -> None:
    rows = rows_of(of_one_kind, tmp_path)
    assert {row["class"] for row in rows} == {"0"}
    assert {row["element"] for row in rows} == {""}
    assert not any("nan" in cell for row in rows for cell in row.values())


def test_atoms_that_were_written_are_read_again_as_truth(
    of_elements: Answer, tmp_path: Path
) -> None:
    rows_of(of_elements, tmp_path)
    truth = read_truth_csv(tmp_path / "atoms.csv")
    assert np.allclose(truth[:, :2], of_elements.atoms[:, :2], atol=1e-4)
    numbers = {"Mo": 42, "S": 16, "V": 23}
    assert truth[:, 2].tolist() == [numbers[name] for name in of_elements.elements]


@pytest.mark.parametrize(
    ("column", "cell", "number"),
    [
        pytest.param("element", "Mo", 42, id="symbol"),
        pytest.param("class", "s", 16, id="lower case"),
        pytest.param("Z", "23", 23, id="atomic number"),
        pytest.param("element", "", 0, id="unknown"),
    ],
)
def test_a_table_of_truth_names_elements_by_symbol_or_number(
    column: str, cell: str, number: int, tmp_path: Path
) -> None:
    (tmp_path / "truth.csv").write_text(f"X,Y,{column}\n1,2,{cell}\n")
    assert read_truth_csv(tmp_path / "truth.csv").tolist() == [[2.0, 1.0, number]]


def test_a_line_on_a_terminal_says_atoms_predicted_f1_and_verdict(of_elements: Answer) -> None:
    (line,) = answers.lines(of_elements, is_verbose=False)
    assert line.startswith(f"scan.tif: {len(of_elements.atoms)} atoms (")
    assert "predicted F1 0." in line
    assert line.endswith("out of distribution" if of_elements.is_drifted else "ok")


def test_verbose_lines_give_members_and_every_reason(of_elements: Answer) -> None:
    text = "\n".join(answers.lines(of_elements, is_verbose=True))
    assert "members 00, 01" in text
    assert all(reason in text for reason in of_elements.reasons)


def test_frames_out_of_distribution_are_warned_of_once(
    of_elements: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert of_elements.is_drifted  # noise is no frame of atoms
    answers.warn([of_elements] * 5)
    said = capsys.readouterr().err
    assert said.count("warning:") == 1
    assert "and 2 more" in said
    assert "manybeam select scan.tif -e mos2" in said


@pytest.mark.parametrize("form", ["frame", "stack"])
def test_json_over_http_names_the_element_of_each_atom(
    form: str, of_elements: Answer, of_one_kind: Answer, noise_yx: np.ndarray
) -> None:
    is_stack = form == "stack"
    for one in (of_elements, of_one_kind):
        frames = Frames((noise_yx,), is_stack)
        meta = answer_meta([one], frames, RequestQuery())
        sent = json.loads(write_json(arrays([one], ("atoms",), is_stack=is_stack), meta))
        assert [row["element"] or "" for row in sent["atoms"]] == list(one.elements)


@pytest.mark.parametrize("side", [96, 384])
def test_a_picture_shows_atoms_as_open_circles_that_scale_with_the_frame(
    side: int, of_elements: Answer
) -> None:
    frame_yx = np.kron(of_elements.frame.pixels_yx, np.ones((side // 96,) * 2, np.float32))
    figure = answer_figure(
        frame_yx, of_elements.prediction, 16.0, of_elements.elements, "out of distribution"
    )
    circles = [
        one for axis in figure.axes for one in axis.collections
        if isinstance(one, EllipseCollection)
    ]  # fmt: skip
    assert circles
    assert all(len(one.get_facecolor()) == 0 for one in circles)
    words = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert all(word.endswith((" nm", " Å")) for word in words)
    assert len(words) >= 2
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().partition(":")[0] for text in legend.get_texts()] == ["Mo", "S", "V"]
    assert "do not rely" in figure.get_suptitle()


def test_an_answer_in_a_notebook_begins_with_the_verdict(of_elements: Answer) -> None:
    shown = of_elements._repr_html_()
    assert of_elements.verdict in shown
    assert " Mo" in shown or " S" in shown


@pytest.mark.parametrize(
    ("chosen_f1", "is_told"),
    [pytest.param(0.9, True, id="much better"), pytest.param(0.52, False, id="hardly better")],
)
def test_the_reason_of_a_named_answer_tells_if_selection_would_choose_better(
    chosen_f1: float, is_told: object
) -> None:
    policies = {0: ("clean", None), 1: ("dirty", None)}
    given = PredictedF1(0.5, 0.3, 0.7, {})
    better = ((1,), PredictedF1(chosen_f1, 0.8, 1.0, {}))
    reasons = answer_reason((0, 1), policies, Near(1.0, {}, (("c", 1.0),)), given, better)
    assert "predicted F1 0.50 (0.30 to 0.70)" in reasons
    told = f"selection would choose member 01 (dirty): predicted F1 {chosen_f1:.2f}"
    assert (told in reasons) is is_told


def test_a_picture_without_atoms_or_pixel_size_is_drawn_too(of_one_kind: Answer) -> None:
    empty = replace(of_one_kind.prediction, atoms=of_one_kind.atoms[:0])
    figure = answer_figure(of_one_kind.frame.pixels_yx, empty, None, (), "nothing")
    assert figure.axes[0].get_title() == "0 atoms"
    assert not [text for axis in figure.axes for text in axis.texts]


def test_the_verdict_has_its_own_reasons(of_elements: Answer) -> None:
    assert of_elements.is_drifted
    assert of_elements.verdict_reasons
    assert all(one in of_elements.why for one in of_elements.verdict_reasons)
