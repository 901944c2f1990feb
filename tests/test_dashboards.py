"""The dashboards: every metric they name is counted by the code, and the other way round."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from manybeam.serve.metrics import COUNTERS, GAUGES, HISTOGRAMS, series_names

FOLDER = Path(__file__).parents[1] / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))
ALERTS = FOLDER / "alerts.yaml"
# What the rules say of series like these, each with a value a minute: name, values, minute, alerts.
CASES = [
    ('manybeam_drift_changes_total{kind="drifted"}', "0x5 1x20", "8m", {"ManybeamDrifted"}),
    ('manybeam_drift_changes_total{kind="back"}', "0x5 1x20", "8m", set()),
    ('manybeam_faults_total{path="predict"}', "0x5 2x20", "8m", {"ManybeamFaults"}),
    ("manybeam_unwatched_frames_total", "0+60x40", "30m", {"ManybeamUnwatched"}),
    ("manybeam_unwatched_frames_total", "60x40", "30m", set()),
]
SERIES = re.compile(r"manybeam_[a-z_]+")


def queries(path: Path) -> list[str]:
    panels: list[dict[str, Any]] = json.loads(path.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_metric_a_dashboard_names_exists(path: Path) -> None:
    named = {name for query in queries(path) for name in SERIES.findall(query)}
    assert named
    assert named <= series_names()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_label_a_dashboard_groups_by_exists(path: Path) -> None:
    known = {label for _, labels in COUNTERS.values() for label in labels}
    known |= {label for _, _, labels in HISTOGRAMS.values() for label in labels}
    known |= {label for _, labels in GAUGES.values() for label in labels}
    known |= {"le", "replica"}
    for query in queries(path):
        for group in re.findall(r"by \(([^)]*)\)", query):
            assert set(group.replace(" ", "").split(",")) <= known
        assert set(re.findall(r"(\w+)=~?\"", query)) <= known


def test_nothing_is_counted_that_no_dashboard_shows() -> None:
    shown = " ".join(query for path in FILES for query in queries(path))
    counted = (*COUNTERS, *HISTOGRAMS, *GAUGES)
    assert [name for name in counted if name not in shown] == []


def test_the_readme_lists_every_metric() -> None:
    text = (FOLDER / "README.md").read_text()
    told = set(re.findall(r"^\| `(manybeam_\w+)`", text, re.MULTILINE))
    assert told == {f"{name}_total" for name in COUNTERS} | {*HISTOGRAMS, *GAUGES}


def test_a_dashboard_means_whatever_data_source_it_is_given() -> None:
    for path in FILES:
        for panel in json.loads(path.read_text())["panels"]:
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["title"]
            assert panel["description"]


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    return found


def test_every_metric_an_alert_names_exists_and_says_what_to_do() -> None:
    for rule in rules():
        assert {*SERIES.findall(rule["expr"])} <= series_names()
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["runbook"]


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if not found:
        pytest.skip("promtool is not installed (Debian package prometheus); CI installs it")
    return found


def test_alerts_fire_when_they_should(promtool: str, tmp_path: Path) -> None:
    told = {name for *_, names in CASES for name in names}
    tests = [
        {
            "interval": "1m",
            "input_series": [
                {"series": name, "values": values},
                {"series": "manybeam_ensembles_held", "values": "1x60"},
            ],
            "alert_rule_test": [
                {
                    "eval_time": at,
                    "alertname": alert,
                    "exp_alerts": [expected(alert)] if alert in names else [],
                }
                for alert in sorted(told)
            ],
        }
        for name, values, at, names in CASES
    ]
    path = tmp_path / "cases.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def expected(alert: str) -> dict[str, Any]:
    (rule,) = (one for one in rules() if one["alert"] == alert)
    return {"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]}


def test_the_scrape_job_and_the_provisioning_are_what_grafana_reads() -> None:
    job = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"][0]
    assert job["metrics_path"] == "/metrics"
    assert job["static_configs"][0]["targets"] == ["127.0.0.1:8100"]
    for path in sorted(FOLDER.glob("provisioning/*/*.yaml")):
        assert yaml.safe_load(path.read_text())["apiVersion"] == 1
