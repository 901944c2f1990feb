"""A pixel size before a network sees the frame: inferred if missing, doubted if impossible."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.data.io.frame import Frame, frame_of
from manybeam.data.simulation.simulate import simulate
from manybeam.errors import DoubtfulPixelSize, MissingPixelSize
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.predictor.answer import Question
from manybeam.predictor.pixel_size import contradiction
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.versions.loaded import LoadedVersion, OneVersion
from manybeam.serve.predict import Service
from manybeam.serve.query import PREDICT_NAMES, read_query
from manybeam.serve.wire import Frames
from manybeam.spec import Condition, Library

pytestmark = pytest.mark.usefixtures("one_thread")

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
NAMED, AUTO = Question("graphene"), Question()
TRUE_PM = 16.0


@pytest.fixture(scope="module")
def predictor(tiny_members: Callable[[int], list[Any]]) -> Predictor:
    """Of one version that was trained for graphene, at about 16 pm a pixel."""
    return Predictor(OneVersion(LoadedVersion(Ensemble(tiny_members(2)))), LIBRARY)


@pytest.fixture(scope="module")
def graphene_yx() -> np.ndarray:
    condition = LIBRARY.condition("graphene-60kv-nominal")
    return simulate(condition, 1, seed=4, shape=(160, 160)).frames_nyx[0]


@pytest.fixture(scope="module")
def noise_yx() -> np.ndarray:
    return np.random.default_rng(0).poisson(50, (128, 128)).astype(np.float32)


def of_sample(**sample: str) -> Condition:
    return Condition.model_validate({"id": "stated", "sample": sample})


def test_a_named_version_infers_a_missing_size_from_the_crystal_it_was_made_for(
    predictor: Predictor, graphene_yx: np.ndarray
) -> None:
    frame = predictor.answer(frame_of(graphene_yx), NAMED).frame
    assert frame.pixel_size_pm == pytest.approx(TRUE_PM, rel=0.03)
    assert frame.pixel_size_error_pm is not None
    assert "pixel size inferred: 16" in frame.notes[0]
    assert "this assumes graphene" in frame.notes[0]


def test_frames_of_one_recording_get_one_inferred_size(
    predictor: Predictor, graphene_yx: np.ndarray
) -> None:
    frames = [frame_of(graphene_yx), frame_of(graphene_yx.T)]
    answers = list(predictor.answers(frames, NAMED))
    assert len({one.frame.pixel_size_pm for one in answers}) == 1


@pytest.mark.parametrize(
    ("condition", "question"),
    [
        pytest.param(None, AUTO, id="nobody names the crystal"),
        pytest.param(of_sample(structure="lsmo"), NAMED, id="a crystal without a known lattice"),
        pytest.param(of_sample(material="gold"), NAMED, id="a material that is not known"),
    ],
)
def test_a_size_is_not_inferred_where_the_crystal_is_unknown(
    condition: Condition | None, question: Question, predictor: Predictor, graphene_yx: np.ndarray
) -> None:
    frame = frame_of(graphene_yx, None, condition)
    with pytest.raises(MissingPixelSize):
        predictor.sized([frame], question)
    assert predictor.answer(frame, question).frame.pixel_size_pm is None


def test_auto_infers_a_size_if_the_condition_names_the_crystal(
    predictor: Predictor, graphene_yx: np.ndarray
) -> None:
    frame = frame_of(graphene_yx, None, of_sample(structure="graphene"))
    (sized,) = predictor.sized([frame], AUTO)
    assert sized.pixel_size_pm == pytest.approx(TRUE_PM, rel=0.03)
    assert "assumes" not in sized.notes[0]


@pytest.mark.parametrize("factor", [0.1, 10.0, 25.0])
def test_a_size_that_the_lattice_contradicts_is_doubted_with_both_numbers(
    factor: float, predictor: Predictor, graphene_yx: np.ndarray
) -> None:
    with pytest.raises(DoubtfulPixelSize) as caught:
        predictor.answer(frame_of(graphene_yx, TRUE_PM * factor), NAMED)
    assert f"pixel size {TRUE_PM * factor:.4g} pm is stated" in caught.value.what
    assert "the frame shows 16" in caught.value.what
    assert "--trust-pixel-size" in caught.value.hint


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_without_a_lattice_a_size_far_from_the_training_is_doubted(
    factor: float, predictor: Predictor, noise_yx: np.ndarray
) -> None:
    with pytest.raises(DoubtfulPixelSize, match="was trained for"):
        predictor.answer(frame_of(noise_yx, TRUE_PM * factor), NAMED)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_without_a_lattice_a_size_near_the_training_is_taken(
    factor: float, predictor: Predictor, noise_yx: np.ndarray
) -> None:
    answer = predictor.answer(frame_of(noise_yx, TRUE_PM * factor), NAMED)
    assert answer.frame.pixel_size_pm == TRUE_PM * factor


def test_a_size_that_is_trusted_is_not_doubted(
    predictor: Predictor, graphene_yx: np.ndarray
) -> None:
    asked = Question("graphene", is_size_trusted=True)
    assert predictor.answer(frame_of(graphene_yx, 1.6), asked).frame.pixel_size_pm == 1.6


def test_a_right_size_far_from_the_training_is_not_doubted(predictor: Predictor) -> None:
    fine = LIBRARY.condition("graphene-60kv-nominal").model_copy(
        update={"scan": LIBRARY.condition("graphene-60kv-nominal").scan.model_copy(
            update={"pixel_size_pm": 5.0})}
    )  # fmt: skip
    frame_yx = simulate(fine, 1, seed=4, shape=(400, 400)).frames_nyx[0]
    assert predictor.answer(Frame(frame_yx, 5.0), NAMED).frame.pixel_size_pm == 5.0


@pytest.mark.parametrize(("size_pm", "is_told"), [(160.0, True), (16.0, False), (None, False)])
def test_a_file_to_import_is_warned_of_if_its_lattice_contradicts(
    size_pm: float | None, is_told: object, graphene_yx: np.ndarray
) -> None:
    said = contradiction(frame_of(graphene_yx, size_pm, of_sample(material="graphene")))
    assert ("160 pm is stated, but the frame shows 16" in said) is is_told


class TestOverHTTP:
    """The service asks the same predictor."""

    @pytest.fixture
    def service(self, tiny_zoo: Any, use_settings: Any) -> Service:
        from manybeam.predictor.versions.of_zoo import ZooVersions

        use_settings({"MANYBEAM_ZOO": str(LIBRARY.folder)})
        return Service(ZooVersions(tiny_zoo, ["graphene"]))

    def test_meta_has_the_inferred_size_and_its_error(
        self, service: Service, graphene_yx: np.ndarray
    ) -> None:
        meta = service.predict("graphene", Frames((graphene_yx,)), read_query([], ())).meta
        assert meta["pixel_size_pm"] == pytest.approx(TRUE_PM, rel=0.03)
        assert meta["pixel_size_error_pm"] > 0
        assert any("pixel size inferred" in note for note in meta["notes"])

    def test_a_doubtful_size_is_refused_until_it_is_trusted(
        self, service: Service, graphene_yx: np.ndarray
    ) -> None:
        stated = [("pixel_size_pm", "1.6")]
        with pytest.raises(DoubtfulPixelSize, match="trust_pixel_size=true"):
            service.predict("graphene", Frames((graphene_yx,)), read_query(stated, PREDICT_NAMES))
        trusted = read_query([*stated, ("trust_pixel_size", "true")], PREDICT_NAMES)
        assert service.predict("graphene", Frames((graphene_yx,)), trusted).meta["frames"] == 1
