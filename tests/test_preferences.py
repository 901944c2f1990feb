"""Preferences of a person: recorded with what was known, listed, taken back; and members drawn."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete

from manybeam.cli import main
from manybeam.cli.predict import read_members
from manybeam.cli.terminal.figures import ACROSS, MOST_ACROSS, members_figure, window_of
from manybeam.data.io.frame import Frame
from manybeam.data.simulation.simulate import simulate
from manybeam.db.deployment import open_database
from manybeam.db.owner import login, whoami
from manybeam.db.preference import Preference
from manybeam.db.preferences import Preferences
from manybeam.db.tables import AuditHead
from manybeam.errors import Corrupt, InvalidInput, MemberCountError, NotFound, UnknownRef
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.predictor.preferences import frame_digest, preferences, record_preference, retract
from manybeam.predictor.selection import Candidate, Selection, select
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.settings import settings
from manybeam.spec import Library
from manybeam.zoo.older_objects import audit_log
from manybeam.zoo.registry import Zoo

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
CONDITION = LIBRARY.condition("graphene-60kv-nominal")
FRAME = simulate(CONDITION, 1, seed=3, shape=(96, 112)).frames_nyx[0]
FACTS: dict[str, Any] = {"frame_yx": FRAME, "file": "/data/today/scan_0142.npy"}
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def _a_store_of_its_own(tmp_path: Path, use_settings: Callable[[dict[str, str]], None]) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home"), "MANYBEAM_ZOO": str(LIBRARY.folder)})


@pytest.fixture(scope="module")
def selection(tiny_zoo: Zoo) -> Selection:
    version = ZooVersions(tiny_zoo).get("graphene")
    return select(version, Frame(FRAME, 16.0), library=LIBRARY)


@pytest.fixture
def prefer(tiny_zoo: Zoo, selection: Selection) -> Callable[..., Preference]:
    """Choose as Ada, unless told otherwise."""
    record = tiny_zoo.resolve("graphene")

    def make(*members: int, **more: Any) -> Preference:
        given = {**FACTS, "pixel_size_pm": 16.0, "condition": CONDITION, "who": "Ada", **more}
        return record_preference(record, selection, members, **given)

    return make


def test_a_preference_reads_back_as_it_was_recorded(
    prefer: Callable[..., Preference], selection: Selection
) -> None:
    made = prefer(2, 0, note="keeps the silicon")
    assert preferences("graphene") == [made]
    assert (made.who, made.ref, made.file) == ("Ada", "graphene@2", "scan_0142.npy")
    assert (made.members, made.proposed) == ((2, 0), selection.chosen)
    assert made.when.endswith("+00:00")
    assert made.condition is not None
    assert made.condition["optics.beam_kv"] == 60.0
    best = selection.candidates[0]
    assert made.features[best.member] == {**best.components, "predicted_f1": best.predicted_f1}


def test_a_preference_that_the_audit_log_lacks_is_said_to_be_kept(
    prefer: Callable[..., Preference],
) -> None:
    audit_log()
    with open_database().writing() as connection:
        connection.execute(delete(AuditHead))
    with pytest.raises(Corrupt) as caught:
        prefer(0)
    assert caught.value.what.startswith(
        "graphene@2: done (preference recorded), but not in the audit log: "
    )
    assert len(preferences("graphene")) == 1


def test_a_preference_is_as_proposed_whatever_the_order(prefer: Callable[..., Preference]) -> None:
    made = replace(prefer(0), proposed=(1, 2))
    made_of = {members: replace(made, members=members) for members in ((2, 1), (1,), (0, 1, 2))}
    agreed = [members for members, one in made_of.items() if one.is_as_proposed]
    assert agreed == [(2, 1)]


def test_preferences_are_listed_by_ensemble_oldest_first(prefer: Callable[..., Preference]) -> None:
    made = {prefer(0).id, prefer(1).id}
    times = [one.when for one in preferences("graphene") if one.id in made]
    assert len(times) == 2
    assert times == sorted(times)
    assert preferences("mos2") == []


def test_writers_at_the_same_time_all_get_by(prefer: Callable[..., Preference]) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: prefer(n % 3, note=str(n)), range(24)))
    assert {one.id for one in preferences("graphene")} == {one.id for one in made}
    assert len({one.id for one in made}) == 24


def test_a_preference_taken_back_is_listed_no_more(prefer: Callable[..., Preference]) -> None:
    first, second = prefer(0), prefer(1)
    retract(first.id, "Grace")
    assert preferences() == [second]
    back = Preferences(open_database()).retraction(first.id)
    assert back is not None
    assert back.who == "Grace"


def test_a_preference_needs_members_that_are_there(prefer: Callable[..., Preference]) -> None:
    with pytest.raises(UnknownRef, match="has no member 07"):
        prefer(0, 7)
    with pytest.raises(MemberCountError):
        prefer()
    assert preferences() == []


@pytest.mark.parametrize(
    ("more", "told"),
    [
        pytest.param({"who": " \n"}, "does not say who", id="blank"),
        pytest.param({"who": "x" * 101}, "does not say who", id="long name"),
        pytest.param({"note": "x" * 2001}, "at most 2000", id="long note"),
    ],
)
def test_a_preference_says_who_in_few_words(
    more: dict[str, str], told: str, prefer: Callable[..., Preference]
) -> None:
    with pytest.raises(InvalidInput, match=told):
        prefer(0, **more)


def test_who_is_the_login_name_unless_told(
    prefer: Callable[..., Preference], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "grace")
    assert prefer(0, who=None).who == login() != "grace"


def test_the_audit_log_has_the_login_and_the_given_name(prefer: Callable[..., Preference]) -> None:
    made = prefer(0, who="Ada")
    retract(made.id, "Grace")
    back, asked = audit_log().entries()[:2]
    assert {asked.who, back.who} == {whoami()}
    assert (asked.action, asked.details["given_name"]) == ("preference recorded", "Ada")
    assert (back.action, back.details["given_name"]) == ("preference taken back", "Grace")


@pytest.mark.parametrize("name", ["absent", "", "a/b", "graphene/x"])
def test_what_was_never_chosen_cannot_be_taken_back(name: str) -> None:
    with pytest.raises(NotFound, match="no preference"):
        retract(name, "Ada")


def test_the_digest_of_a_frame_is_of_its_shape_and_values() -> None:
    frames = [FRAME, FRAME.T, FRAME + np.float32(1e-3)]
    assert len({frame_digest(frame) for frame in frames}) == 3
    assert frame_digest(FRAME.astype(np.float64)) == frame_digest(np.asfortranarray(FRAME))


@pytest.mark.parametrize(("text", "indices"), [("", ()), ("03", (3,)), ("3, 05,3", (3, 5))])
def test_members_are_told_by_their_numbers(text: str, indices: tuple[int, ...]) -> None:
    assert read_members("--pick", text) == indices


@pytest.mark.parametrize("text", ["a", "1,,2", "-1", "1.5", "²"])
def test_what_is_no_number_of_a_member_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no member"):
        read_members("--pick", text)


@pytest.fixture
def platform(tmp_path: Path, tiny_members: Callable[[int], list[Any]]) -> Path:
    """A platform that serves `graphene`, and a frame in the folder returned."""
    Path(settings().home).mkdir()
    Zoo().register("graphene", tiny_members(3), job={"kind": "train"}, alias="serving")
    np.save(tmp_path / "scan.npy", FRAME)
    return tmp_path


def test_members_are_shown_chosen_listed_and_the_choice_taken_back(
    platform: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(platform)
    words = ["select", "scan.npy", "--pixel-size-pm", "16", "-e", "graphene"]
    assert main([*words, "--show", "--pick", "02,00", "--who", "Ada", "--note", "Si"]) == 0
    told = capsys.readouterr()
    preferred = {row["member"]: row["preferred"] for row in map(json.loads, told.out.splitlines())}
    assert preferred == {"graphene@1/00": True, "graphene@1/01": False, "graphene@1/02": True}
    assert "scan-members.png" in told.err
    assert Path("scan-members.png").read_bytes().startswith(b"\x89PNG")
    assert main(["select", "--picks", "-e", "graphene", "-o", "json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert (row["who"], row["members"], row["note"]) == ("Ada", ["02", "00"], "Si")
    assert f"--retract {row['preference']}" in told.err
    assert main(["select", "--retract", row["preference"]]) == 0
    capsys.readouterr()
    assert main(["select", "--picks", "-e", "graphene@1", "-o", "id"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        pytest.param([], 2, "no frame to select for", id="no frame"),
        pytest.param(["scan.npy", "--pick", "x"], 2, "is no member", id="no member"),
        pytest.param(["scan.npy", "--png", "gone/a.png"], 2, "no folder gone", id="no folder"),
        pytest.param(["scan.npy", "--png", "a.txt"], 2, ".png, .svg, .pdf", id="no picture"),
        pytest.param(["--retract", "x"], 4, "no preference 'x'", id="no preference"),
        pytest.param(["--picks", "-e", "A b"], 4, "no reference", id="no reference"),
    ],
)
def test_what_cannot_be_shown_or_chosen_is_told_before_any_work(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["select", *words]) == code
    assert said in capsys.readouterr().err


def test_twelve_members_at_most_are_drawn_best_first_and_the_chosen_marked(
    tiny_members: Callable[[int], list[Any]],
) -> None:
    answer = Ensemble(tiny_members(14)).predict(FRAME, 16.0)
    ranked = tuple(Candidate(m, 0.9 - m / 100, 0.5, 1.0, {"forward": 0.5}, "") for m in range(14))
    selection = Selection("ok", ranked, (0, 1), "because")
    figure = members_figure(FRAME, answer, selection, preferred=(3,))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    count = len(answer.member_atoms[3])
    assert titles[:2] == ["frame", f"mean of the preferred: 03\n{count} atoms"]
    assert [int(title[:2]) for title in titles[2:]] == list(range(12))
    assert "explain 25 % of the frame" in titles[2]
    bold = [axis.title.get_fontweight() == "bold" for axis in figure.axes[2:14]]
    assert bold == [member == 3 for member in range(12)]
    assert "2 more members are not shown" in figure.get_suptitle()


def test_of_a_large_frame_the_part_is_drawn_where_members_differ(
    tiny_members: Callable[[int], list[Any]],
) -> None:
    frame = np.tile(FRAME, (5, 5))
    whole = Ensemble(tiny_members(2)).predict(frame, 16.0)
    atoms = np.zeros((40 * 40, 7), np.float32)
    atoms[:, :2] = 10 * np.argwhere(np.ones((40, 40)))
    std_yx = np.zeros(frame.shape, np.float32)
    std_yx[300:310, 400:410] = 0.5
    rows, columns = window_of(
        replace(whole, _known=(std_yx, std_yx, std_yx)), atoms, MOST_ACROSS, ACROSS
    )
    assert rows.stop - rows.start == columns.stop - columns.start == 10 * ACROSS
    assert rows.start <= 300 < 310 <= rows.stop
    assert columns.start <= 400 < 410 <= columns.stop
    ranked = tuple(Candidate(m, 0.5, 0.0, 1.0, {}, "") for m in (0, 1))
    figure = members_figure(frame, whole, Selection("ok", ranked, (0,), "because"))
    assert len(figure.axes) == 4
