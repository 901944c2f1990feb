"""`manybeam data` on instrument files: what they tell, what a lattice tells, what frames tell."""

import json
from pathlib import Path

import numpy as np
import pytest

from manybeam.cli import main
from manybeam.data.simulate import simulate
from manybeam.settings import settings
from manybeam.spec import Library


@pytest.fixture(scope="module")
def graphene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frames") / "sheet.npy"
    known = Library(settings().zoo).condition("graphene-60kv-nominal")
    np.save(path, simulate(known, 1, seed=3, shape=(160, 160)).frames_nyx[0])
    return path


def named(path: Path, **words: object) -> Path:
    """Write words beside a frame."""
    path.with_suffix(".json").write_text(json.dumps(words))
    return path


def fields(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, object], str]:
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    return {row["field"]: row["value"] for row in rows}, err


def test_show_tells_what_a_file_says_of_the_microscope(graphene, capsys):
    named(graphene, voltage="60 kV", pixel_size="16 pm", probe_current="60 pA", dwell_us=16)
    assert main(["data", "show", str(graphene)]) == 0
    row, err = fields(capsys)
    assert row["pixel_size_pm"] == 16.0
    assert row["optics.beam_kv"] == "60.0"
    assert "is derived: 60 pA x 16 us on 16 pm" in err


def test_show_infers_the_pixel_size_where_the_sample_names_a_lattice(graphene, capsys):
    named(graphene, material="graphene")
    assert main(["data", "show", str(graphene)]) == 0
    row, err = fields(capsys)
    assert row["pixel_size_pm"] == pytest.approx(16, rel=0.05)
    assert "+- 0." in err
    assert "spots of the graphene lattice" in err


def test_show_leaves_the_pixel_size_open_without_a_lattice(graphene, capsys):
    named(graphene, material="unknown dust")
    assert main(["data", "show", str(graphene)]) == 0
    row, err = fields(capsys)
    assert row["pixel_size_pm"] is None
    assert "no lattice is known" in err


def test_show_warns_of_what_is_physically_doubtful(graphene, capsys):
    named(graphene, voltage="60 kV", pixel_size="60 pm", convergence_angle="30 mrad")
    assert main(["data", "show", str(graphene)]) == 0
    assert "warning: pixel_size_pm 60 is above the probe's Nyquist" in capsys.readouterr().err


def test_simulate_warns_before_it_simulates(tmp_path, capsys):
    words = ["data", "simulate", "ptnc-sim-nominal", "--count", "1", "--side-px", "64"]
    assert main([*words, "--out", str(tmp_path / "frames")]) == 0
    assert "warning: pixel_size_pm 29.3 is above" in capsys.readouterr().err


def test_import_takes_the_inferred_pixel_size_and_says_so(graphene, tmp_path, capsys):
    named(graphene, material="graphene")
    assert main(["data", "import", str(graphene), "--out", str(tmp_path / "set")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["pixel_size_pm"] == pytest.approx(16, rel=0.05)
    assert "inferred from" in err


def test_import_still_asks_where_no_lattice_is_known(graphene, tmp_path, capsys):
    named(graphene, material="dust")
    assert main(["data", "import", str(graphene), "--out", str(tmp_path / "set")]) == 2
    assert "add --pixel-size-pm" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_infer_tells_each_quantity_with_its_interval(graphene, capsys):
    named(graphene, pixel_size="16 pm")
    words = ["data", "infer", str(graphene), "--policy", "graphene-general", "--draws", "96"]
    assert main([*words, "-o", "json"]) == 0
    out, err = capsys.readouterr()
    rows = {row["quantity"]: row for row in json.loads(out)}
    assert rows["dose_e_per_a2"]["low"] < 1.2e6 < rows["dose_e_per_a2"]["high"]
    assert rows["dose_e_per_a2"]["told"]
    assert not rows["optics.beam_kv"]["told"]
    assert "optics.defocus_nm (magnitude)" in rows
    assert "96 draws" in err


def test_infer_refuses_files_of_two_conditions(graphene, tmp_path, capsys):
    named(graphene, pixel_size="16 pm")
    np.save(tmp_path / "small.npy", np.random.default_rng(0).random((64, 64)))
    words = ["data", "infer", str(graphene), str(tmp_path / "small.npy")]
    assert main([*words, "--policy", "graphene-general"]) == 2
    assert "infer the condition of each kind by itself" in capsys.readouterr().err
