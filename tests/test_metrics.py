"""What the service counts: names, and the page that gathers every replica's series."""

import re

import pytest

from manybeam.serve.metrics import COUNTERS, GAUGES, HISTOGRAMS, Meter, join, series_names

# Ray Serve declares its own models the way pydantic wants to forget; only importing it warns.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

PAGE = """\
# HELP ray_manybeam_frames_total frames predicted
# TYPE ray_manybeam_frames_total counter
ray_manybeam_frames_total{ensemble="a",otel_scope_name="x.y",otel_scope_version="",replica="R"} 2.0
# HELP ray_tasks tasks
# TYPE ray_tasks gauge
ray_tasks{Name="x"} 1.0
# HELP ray_manybeam_request_seconds time
# TYPE ray_manybeam_request_seconds histogram
ray_manybeam_request_seconds_bucket{le="0.1",otel_scope_name="x"} 3.0
ray_manybeam_request_seconds_count{otel_scope_name="x"} 3.0
"""


def test_the_replicas_of_all_nodes_stand_on_one_page_each_family_once() -> None:
    page = join([PAGE.replace("R", "one"), PAGE.replace("R", "two")])
    assert page.count("# TYPE manybeam_frames_total counter") == 1
    assert 'manybeam_frames_total{ensemble="a",replica="one"} 2.0' in page
    assert 'manybeam_frames_total{ensemble="a",replica="two"} 2.0' in page


def test_only_our_series_are_given_and_under_our_names() -> None:
    page = join([PAGE])
    assert "ray_" not in page
    assert "otel_scope" not in page
    assert 'manybeam_request_seconds_bucket{le="0.1"} 3.0' in page


def test_a_page_without_our_series_is_empty() -> None:
    assert join([]) == join(["# HELP ray_tasks tasks\nray_tasks 1.0\n"]) == ""


def test_every_metric_is_named_as_the_house_names_metrics() -> None:
    for name in (*COUNTERS, *HISTOGRAMS, *GAUGES):
        assert re.fullmatch(r"manybeam_[a-z]+(_[a-z]+)*", name)
    assert "manybeam_requests_total" in series_names()
    assert "manybeam_request_seconds_bucket" in series_names()


def test_counting_outside_of_a_cluster_counts_into_nothing() -> None:
    meter = Meter()
    meter.request("predict", 500, 0.1)
    meter.answer("graphene", frames=1, members=3, is_degraded=True, is_drifted=True)
    meter.stages({"predict": 0.1})
    meter.waiting(1)
    meter.held(1)
    meter.rollout("canary", "new")
    meter.rollouts(1)
