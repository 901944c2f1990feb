"""`manybeam zoo ls` and the tables: what is found, what is refused, what is shown as it is."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from manybeam.cli import main
from manybeam.zoo.matrix import ENSEMBLE, SELECTED, Score
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow

JOB = {"kind": "train"}


@pytest.fixture
def filled(embedded: Zoo, tiny_members: Any, tmp_path: Path, use_settings: Any) -> Zoo:
    """Two ensembles, one better on each of two conditions; the settings point at them."""
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    for name, dim, bright in (("night", 0.9, 0.5), ("day", 0.4, 0.8)):
        rows = [Score(ENSEMBLE, "dim", "d", {"f1": dim}), Score(0, "bright", "b", {"f1": bright})]
        rows.append(Score(ENSEMBLE, "bright", "b", {"f1": bright}))
        embedded.register(name, tiny_members(1), job=JOB, scores=rows)
    return embedded


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["zoo", "ls", *words, "-o", "json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_the_selected_members_and_the_best_ones_stand_beside_all(
    embedded: Zoo, tiny_members: Any, tmp_path: Path, use_settings: Any, capsys: Any
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    each = {ENSEMBLE: 0.5, 0: 0.6, 1: 0.7}
    rows = [Score(row, name, "d-1", {"f1": f1}) for name in ("a", "b") for row, f1 in each.items()]
    chosen = [Score(SELECTED, name, "d-1", {"f1": 0.65}) for name in ("a", "b")]
    embedded.register("plain", tiny_members(2), job=JOB, scores=rows)
    embedded.register("half", tiny_members(2), job=JOB, scores=[*rows, chosen[0]])
    embedded.register("whole", tiny_members(2), job=JOB, scores=[*rows, *chosen])
    found = {row["ref"]: (row["f1"], row["selected"], row["best_member"]) for row in listed(capsys)}
    assert found["whole@1"] == pytest.approx((0.5, 0.65, 0.7))
    assert (found["half@1"][1], found["plain@1"][1]) == (None, None)
    ranked = listed(capsys, "--score", "selected_f1")
    assert [row["ref"] for row in ranked] == ["whole@1", "half@1", "plain@1"]
    assert "selected" not in listed(capsys, "--members")[0]
    assert main(["zoo", "ls", "-o", "table"]) == 0
    shown = capsys.readouterr()
    assert "best_member" in shown.out
    assert "selected: the members chosen for each frame" in shown.err
    for ref, words in (("whole@1", "selected     0.650"), ("plain@1", "selected     not measured")):
        assert main(["zoo", "show", ref]) == 0
        assert words in capsys.readouterr().err


def test_only_scores_are_called_not_measured_and_columns_without_a_value_are_left_out(
    filled: Zoo, tiny_members: Any, capsys: Any
) -> None:
    filled.register("never", tiny_members(1), job=JOB)
    assert main(["zoo", "ls", "-o", "table"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("not measured") == 1
    assert "best_member" not in shown.out + shown.err


def test_a_condition_ranks_by_the_score_there(filled: Zoo, capsys: Any) -> None:
    assert [row["ref"] for row in listed(capsys, "-c", "dim")] == ["night@1", "day@1"]
    assert [row["ref"] for row in listed(capsys, "-c", "bright")] == ["day@1", "night@1"]
    (member, other) = listed(capsys, "--members", "-c", "dim")
    assert (member["f1"], other["f1"]) == (None, None)


def test_words_that_describe_imaging_are_explained(filled: Zoo, capsys: Any) -> None:
    assert main(["zoo", "ls", "low", "dose", "-o", "json"]) == 0
    shown = capsys.readouterr()
    assert "low dose: dose at most 33 % of the highest" in shown.err
    assert "ranked by 0 conditions" in shown.err
    assert [row["f1"] for row in json.loads(shown.out)] == [None, None]


def test_words_find_and_archived_versions_are_left_out(filled: Zoo, capsys: Any) -> None:
    assert [row["ref"] for row in listed(capsys, "nig")] == ["night@1"]
    assert main(["zoo", "archive", "night@1", "--reason", "see [/issue 5]"]) == 0
    assert [row["ref"] for row in listed(capsys)] == ["day@1"]
    assert [row["ref"] for row in listed(capsys, "--status", "archived")] == ["night@1"]


def test_a_version_measured_on_few_conditions_is_below_one_measured_on_all(
    filled: Zoo, tiny_members: Any, capsys: Any
) -> None:
    easy = [Score(ENSEMBLE, "dim", "d", {"f1": 1.0})]
    filled.register("easy", tiny_members(1), job=JOB, scores=easy)
    filled.register("never", tiny_members(1), job=JOB)
    found = listed(capsys)
    assert [(row["ref"], row["coverage"]) for row in found] == [
        ("night@1", "2 of 2"), ("day@1", "2 of 2"), ("easy@1", "1 of 2"), ("never@1", "0 of 2"),
    ]  # fmt: skip
    assert main(["zoo", "ls", "-o", "table"]) == 0
    shown = capsys.readouterr()
    assert "1 of 2" in shown.out
    assert "compared on the 2 conditions that 2 of 4 rows were measured on" in shown.err


def test_a_cell_of_a_csv_holds_no_python_list(filled: Zoo, capsys: Any) -> None:
    assert main(["zoo", "promote", "night@1"]) == 0
    capsys.readouterr()
    assert main(["zoo", "ls", "-o", "csv"]) == 0
    (night, _) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert night["aliases"] == "serving"
    assert main(["zoo", "audit", "-o", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [json.loads(row["details"]) for row in rows][-1]["alias"] == "serving"


@pytest.mark.parametrize("form", ["table", "csv", "jsonl", "json", "id"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ls"], "no ensemble yet; train a first one"),
        (["ls", "gold"], "no ensemble fits this search"),
        (["audit"], "no record yet"),
        (["gc"], "no data that can be removed"),
    ],
)
def test_nothing_is_said_to_be_nothing_yet(
    form: str, words: list[str], told: str, tmp_path: Path, embedded: Zoo, use_settings: Any,
    capsys: Any,
) -> None:  # fmt: skip
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    assert main(["zoo", *words, "-o", form]) == 0
    shown = capsys.readouterr()
    assert told in shown.err
    assert "nothing" not in shown.out


def test_a_table_shows_a_reason_as_it_was_written(filled: Zoo, capsys: Any) -> None:
    assert main(["zoo", "archive", "night@1", "--reason", "see [/issue 5] [red]now"]) == 0
    capsys.readouterr()
    assert main(["zoo", "audit", "-o", "table"]) == 0
    assert "see [/issue 5] [red]now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["-c", "nosuch"], 4, "measured: bright, dim"),
        (["--score", "nosuch"], 4, "recorded: best_member_f1, f1"),
        (["--where", "beam_kv<>60"], 2, "is no range of a quantity"),
        (["--where", "beam_kv>=sixty"], 2, "is no range of a quantity"),
        (["--order", "beauty"], 2, "order: 'beauty'"),
        (["--status", "lost"], 2, "status: 'lost'"),
    ],
)
def test_what_is_not_known_is_told(
    filled: Zoo, capsys: Any, words: list[str], code: int, told: str
) -> None:
    assert main(["zoo", "ls", *words]) == code
    assert told in capsys.readouterr().err


def test_several_ranges_of_one_quantity_all_hold() -> None:
    from manybeam.cli.zoo.listing import _ranges

    assert _ranges(["beam_kv>=60", "beam_kv<=80", "beam_kv<=70", "defocus_nm:1..2"]) == {
        "beam_kv": (60.0, 70.0),
        "defocus_nm": (1.0, 2.0),
    }


@pytest.mark.parametrize("ref", ["../etc", "Grafén", "x" * 300, "night@@1", "night@1/zz", "a b"])
def test_a_name_that_no_ensemble_can_have_is_refused_everywhere(
    filled: Zoo, capsys: Any, ref: str
) -> None:
    for verb in ("show", "matrix", "test", "verify", "promote", "archive", "card"):
        assert main(["zoo", verb, ref]) == 4, verb
        assert "error:" in capsys.readouterr().err


def test_the_last_state_is_shown_while_the_zoo_is_away(
    filled: Zoo, capsys: Any, tmp_path: Path
) -> None:
    assert len(listed(capsys)) == 2
    # In a process of its own: MLflow in this one keeps the database open.
    (tmp_path / "zoo.db").write_text("no database " * 50)
    argv = [sys.executable, "-m", "manybeam", "zoo", "ls", "-o", "id"]
    told = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert sorted(told.stdout.split()) == ["day@1", "night@1"]
    assert "0 minutes ago" in told.stderr
