"""The dashboards: every metric they name is counted by the code, and the other way round."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from manybeam.serve.metrics import COUNTERS, GAUGES, HISTOGRAMS, series_names

FOLDER = Path(__file__).parents[1] / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))
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


def test_the_scrape_job_and_the_provisioning_are_what_grafana_reads() -> None:
    job = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"][0]
    assert job["metrics_path"] == "/metrics"
    assert job["static_configs"][0]["targets"] == ["127.0.0.1:8100"]
    for path in sorted(FOLDER.glob("provisioning/*/*.yaml")):
        assert yaml.safe_load(path.read_text())["apiVersion"] == 1
