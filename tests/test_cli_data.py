"""`manybeam data` on instrument files: what they tell, what a lattice tells, what frames tell."""

import json
from pathlib import Path

import numpy as np
import pytest

from manybeam.cli import main
from manybeam.cli.jobs import _warn_of_policies
from manybeam.data.frames import FrameSet
from manybeam.data.io.measured import dose_e_per_a2
from manybeam.data.simulation.simulate import simulate
from manybeam.settings import settings
from manybeam.spec import Library, load_job


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


@pytest.mark.parametrize("name", ["a.npz", "a.bmp", "a"])
def test_show_names_the_formats_that_are_read(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"PK\3\4")
    assert main(["data", "show", str(tmp_path / name)]) != 0
    assert "supported are .tif" in capsys.readouterr().err


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
    assert "pass --pixel-size-pm" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.slow
def test_infer_tells_each_quantity_with_its_interval(graphene, capsys):
    named(graphene, pixel_size="16 pm")
    words = ["data", "infer", str(graphene), "--policy", "graphene-general", "--draws", "96"]
    assert main([*words, "-o", "json"]) == 0
    out, err = capsys.readouterr()
    rows = {row["quantity"]: row for row in json.loads(out)}
    assert rows["dose_e_per_a2"]["low"] < 1.2e6 < rows["dose_e_per_a2"]["high"]
    assert rows["dose_e_per_a2"]["determined"]
    assert not rows["optics.beam_kv"]["determined"]
    assert "optics.defocus_nm (magnitude)" in rows
    assert "96 draws" in err


def test_infer_refuses_files_of_two_conditions(graphene, tmp_path, capsys):
    named(graphene, pixel_size="16 pm")
    np.save(tmp_path / "small.npy", np.random.default_rng(0).random((64, 64)))
    words = ["data", "infer", str(graphene), str(tmp_path / "small.npy")]
    assert main([*words, "--policy", "graphene-general"]) == 2
    assert "infer the condition of each kind separately" in capsys.readouterr().err


def written(folder: Path, name: str, **words: object) -> Path:
    """Write a frame of noise and words beside it."""
    np.save(folder / name, np.random.default_rng(len(name)).random((48, 48)))
    return named(folder / name, **words)


def test_an_import_that_fails_leaves_what_is_in_the_folder(tmp_path, capsys):
    file = written(tmp_path, "a.npy", pixel_size="16 pm")
    file.with_suffix(".csv").write_text("X,Y,class\n1,2,1e39\n")
    kept = tmp_path / "set" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("of the user")
    words = ["data", "import", str(file), "--truth", "csv", "--out", str(kept.parent)]
    assert main(words) == 2
    assert kept.read_text() == "of the user"
    assert list(kept.parent.iterdir()) == [kept]


def test_an_import_beside_a_set_leaves_that_set(tmp_path, capsys):
    file, out = written(tmp_path, "a.npy", pixel_size="16 pm"), tmp_path / "set"
    assert main(["data", "import", str(file), "--out", str(out)]) == 0
    digest = FrameSet.open(out).digest
    assert main(["data", "import", str(file), "--out", str(out)]) != 0
    assert "there is already a FrameSet" in capsys.readouterr().err
    FrameSet.open(out).verify()
    assert FrameSet.open(out).digest == digest


def test_simulate_replaces_only_a_set_it_was_told_to(tmp_path, monkeypatch, capsys):
    words = ["data", "simulate", "graphene-60kv-nominal", "--count", "1", "--side-px", "64"]
    words += ["--out", str(tmp_path / "set")]
    assert main(words) == 0
    digest = FrameSet.open(tmp_path / "set").digest
    assert main([*words, "--seed", "1"]) != 0
    assert FrameSet.open(tmp_path / "set").digest == digest
    assert main([*words, "--seed", "1", "--overwrite"]) == 0
    assert FrameSet.open(tmp_path / "set").digest != digest


@pytest.mark.parametrize("more", [[], ["--append"]], ids=["at once", "one after the other"])
def test_files_of_two_conditions_are_no_frameset(more, tmp_path, capsys):
    one = written(tmp_path, "one.npy", voltage="60 kV", pixel_size="16 pm")
    two = written(tmp_path, "other.npy", voltage="200 kV", pixel_size="16 pm")
    words = ["data", "import", str(one), "--out", str(tmp_path / "set")]
    assert main(words if more else [*words, str(two)]) == (0 if more else 2)
    if more:
        assert main(["data", "import", str(two), "--out", str(tmp_path / "set"), *more]) == 2
    err = capsys.readouterr().err
    assert "optics.beam_kv" in err
    assert "60 of" in err
    assert "200 of" in err
    assert "other.npy" in err


def test_an_inferred_pixel_size_enters_the_condition_and_makes_its_dose(graphene, tmp_path, capsys):
    named(graphene, material="graphene", probe_current="60 pA", dwell_us=16)
    assert main(["data", "import", str(graphene), "--out", str(tmp_path / "set")]) == 0
    frames = FrameSet.open(tmp_path / "set")
    known = frames.condition
    assert known.scan.pixel_size_pm == frames.pixel_size_pm(0)
    assert known.dose_e_per_a2 == pytest.approx(dose_e_per_a2(60, 16, known.scan.pixel_size_pm))
    assert known.origin == "inferred"
    assert "pixel size inferred" in known.title
    assert "is derived: 60 pA" in capsys.readouterr().err


def sheets(folder: Path, *size_pm: float) -> list[str]:
    """Write one simulated sheet for each pixel size, none of them told."""
    known = Library(settings().zoo).condition("graphene-60kv-nominal")
    files = []
    for seed, size in enumerate(size_pm):
        scan = known.scan.model_copy(update={"pixel_size_pm": size})
        frame = simulate(known.model_copy(update={"scan": scan}), 1, seed=seed, shape=(160, 160))
        np.save(folder / f"{seed}.npy", frame.frames_nyx[0])
        files.append(str(named(folder / f"{seed}.npy", material="graphene")))
    return files


def test_files_of_one_import_get_one_inferred_pixel_size(tmp_path, capsys):
    files = sheets(tmp_path, 16.0, 16.0)
    assert main(["data", "import", *files, "--out", str(tmp_path / "set")]) == 0
    frames = FrameSet.open(tmp_path / "set")
    assert frames.pixel_size_pm(0) == frames.pixel_size_pm(1) == pytest.approx(16, rel=0.03)
    assert "of 2 frames" in capsys.readouterr().err


def test_files_whose_lattices_tell_different_pixel_sizes_are_refused(tmp_path, capsys):
    files = sheets(tmp_path, 16.0, 20.0)
    assert main(["data", "import", *files, "--out", str(tmp_path / "set")]) == 2
    assert "differ by more than two errors" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.slow
def test_infer_takes_what_is_stated_and_says_what_the_policy_does_not_hold(graphene, capsys):
    named(graphene, pixel_size="16 pm", defocus="2 nm", voltage="200 kV")
    words = ["data", "infer", str(graphene), "--policy", "graphene-general", "--draws", "64"]
    assert main([*words, "-o", "json"]) == 0
    out, err = capsys.readouterr()
    assert "optics.defocus_nm" not in {row["quantity"] for row in json.loads(out)}
    assert "optics.defocus_nm 2 is stated" in err
    assert "optics.beam_kv 200 is stated, which is outside" in err


def test_training_warns_of_what_its_policies_are_simulated_with(capsys):
    job = load_job(Path(__file__).parents[1] / "jobs" / "ptnc.yaml")
    _warn_of_policies(job, Library(settings().zoo))
    err = " ".join(capsys.readouterr().err.split())
    assert "warning: policy pt-general: pixel_size_pm" in err
    assert "above the probe's Nyquist limit" in err


def test_simulate_warns_of_the_numbers_it_fills_in(tmp_path, use_settings, capsys):
    (tmp_path / "zoo" / "conditions").mkdir(parents=True)
    text = "{id: wide, sample: {structure: graphene}, scan: {pixel_size_pm: 60}}"
    (tmp_path / "zoo" / "conditions" / "wide.yaml").write_text(text)
    use_settings({"MANYBEAM_ZOO": str(tmp_path / "zoo")})
    words = ["data", "simulate", "wide", "--count", "1", "--side-px", "32"]
    assert main([*words, "--out", str(tmp_path / "set")]) == 0
    assert "Nyquist limit of 40.5 pm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("graphene-nominl", "similar names: graphene-nominal"),  # a policy
        ("graphene-60kv-nominl", "similar names: graphene-60kv-nominal"),  # a condition
        ("zzz", "manybeam conditions ls and manybeam policies ls list all names"),
    ],
)
def test_an_unknown_name_to_simulate_is_searched_in_conditions_and_policies(
    name: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "simulate", name, "--out", str(tmp_path / "out")]) == 4
    err = capsys.readouterr().err
    assert f"there is no condition or policy {name!r}" in err
    assert hint in err
