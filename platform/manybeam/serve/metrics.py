"""The metrics of the service, which Prometheus reads for all replicas at once.

They are counted by Ray, not by prometheus-client: a scrape reaches one replica only, so counters
would jump between replicas. Ray's agent on each node has the series of all its processes, each with
the label of its replica; `/metrics` on any replica collects them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

PREFIX = "manybeam_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64)
AGENT_TIMEOUT_S = 2.0
TEXT = "text/plain; version=0.0.4; charset=utf-8"

# kind, name, sentence, labels; the values of a label are a known set, never text of a caller.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "manybeam_requests": ("requests answered, by path and HTTP status", ("path", "status")),
    "manybeam_frames": ("frames predicted, by ensemble", ("ensemble",)),
    "manybeam_drifted_answers": ("answers for frames out of distribution", ("ensemble",)),
    "manybeam_degraded_answers": ("answers with a limitation", ("ensemble",)),
    "manybeam_refused_requests": ("requests refused because the service is busy", ("reason",)),
    "manybeam_rollout_frames": (
        "frames of rollouts, by what became of them: answered by the base or the new version, "
        "skipped, or failed by the new version",
        ("kind", "what"),
    ),
    "manybeam_stream_events": ("changes that streams told their clients, by kind", ("kind",)),
    "manybeam_instrument_files": (
        "instrument files in bodies, by what became of them: read, refused, or ended their reader",
        ("what",),
    ),
    "manybeam_unwatched_frames": ("frames of sessions that the monitor did not get", ()),
    "manybeam_drift_changes": ("changes that drift watches found, by kind", ("kind",)),
    "manybeam_doubtful_frames": (
        "doubtful frames, by what became of them: kept, or left out",
        ("what",),
    ),
    "manybeam_notifications": (
        "notifications to the webhook, by what became of them: delivered, or failed",
        ("what",),
    ),
    "manybeam_faults": ("requests that failed by an internal error", ("path",)),
}
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...], tuple[str, ...]]] = {
    "manybeam_request_seconds": ("time from request to answer", SECONDS, ("path",)),
    "manybeam_stage_seconds": ("time of one stage of an answer", SECONDS, ("stage",)),
    "manybeam_members_used": ("members that answered one request", COUNTS, ("ensemble",)),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "manybeam_waiting_requests": ("requests waiting or being answered", ()),
    "manybeam_open_streams": ("streams of frames that are open", ()),
    "manybeam_ensembles_held": ("ensembles in memory", ()),
    "manybeam_rollouts_running": ("shadows and canaries that run", ()),
    "manybeam_drifted_sessions": ("sessions whose frames have left what is known", ()),
    "manybeam_drift_score": (
        "score of the drift watch of an instrument's session; 1 is the threshold",
        ("instrument",),
    ),
}

_SCOPE = re.compile(r'otel_scope_\w+="[^"]*",?')
_FAMILY = re.compile(r"^(?:# (?:HELP|TYPE) )?ray_(manybeam_\w+)")


class Meter:
    """The metrics of one replica; outside of Ray nothing is counted."""

    def __init__(self) -> None:
        from ray.serve import metrics

        # Ray's types allow one label only; it accepts any number.
        Counter: Any = metrics.Counter
        Gauge: Any = metrics.Gauge
        Histogram: Any = metrics.Histogram
        self._counters = {
            name: Counter(name, description=text, tag_keys=labels)
            for name, (text, labels) in COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(name, description=text, boundaries=list(bounds), tag_keys=labels)
            for name, (text, bounds, labels) in HISTOGRAMS.items()
        }
        self._gauges = {
            name: Gauge(name, description=text, tag_keys=labels)
            for name, (text, labels) in GAUGES.items()
        }

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count one request; 5xx is an internal error, unless the service is full or late."""
        self._counters["manybeam_requests"].inc(1, {"path": path, "status": str(status)})
        self._histograms["manybeam_request_seconds"].observe(seconds, {"path": path})
        if status == 500:
            self._counters["manybeam_faults"].inc(1, {"path": path})

    def answer(
        self, ensemble: str, *, frames: int, members: int, is_degraded: bool, is_drifted: bool
    ) -> None:
        """Count one answer of an ensemble of the zoo."""
        labels = {"ensemble": ensemble}
        if frames:  # 0 for a selection; Ray refuses to count 0
            self._counters["manybeam_frames"].inc(frames, labels)
        self._histograms["manybeam_members_used"].observe(members, labels)
        if is_degraded:
            self._counters["manybeam_degraded_answers"].inc(1, labels)
        if is_drifted:
            self._counters["manybeam_drifted_answers"].inc(1, labels)

    def stages(self, seconds: Mapping[str, float]) -> None:
        """Count the time of each stage of one answer."""
        for stage, value in seconds.items():
            self._histograms["manybeam_stage_seconds"].observe(value, {"stage": stage})

    def refused(self, reason: str) -> None:
        """Count a request that was refused because the service is busy."""
        self._counters["manybeam_refused_requests"].inc(1, {"reason": reason})

    def file(self, what: str) -> None:
        """Count an instrument file; `what` is read, refused or ended."""
        self._counters["manybeam_instrument_files"].inc(1, {"what": what})

    def waiting(self, count: int) -> None:
        """Set the number of requests in the replica."""
        self._gauges["manybeam_waiting_requests"].set(count)

    def held(self, count: int) -> None:
        """Set the number of ensembles in memory."""
        self._gauges["manybeam_ensembles_held"].set(count)

    def streams(self, count: int) -> None:
        """Set the number of open streams."""
        self._gauges["manybeam_open_streams"].set(count)

    def stream_event(self, kind: str) -> None:
        """Count a change that a stream told its client; `kind` is that of the event."""
        self._counters["manybeam_stream_events"].inc(1, {"kind": kind})

    def unwatched(self, frames: int) -> None:
        """Count frames of sessions that the monitor did not get."""
        self._counters["manybeam_unwatched_frames"].inc(frames)

    def drift(self, instrument: str, score: float) -> None:
        """Set the drift score of an instrument."""
        self._gauges["manybeam_drift_score"].set(score, {"instrument": instrument})

    def drift_change(self, kind: str) -> None:
        """Count a change that a drift watch found; `kind` is drifted or back."""
        self._counters["manybeam_drift_changes"].inc(1, {"kind": kind})

    def drifted_sessions(self, count: int) -> None:
        """Set the number of sessions that drifted."""
        self._gauges["manybeam_drifted_sessions"].set(count)

    def doubtful(self, what: str) -> None:
        """Count a doubtful frame; `what` is kept or left-out."""
        self._counters["manybeam_doubtful_frames"].inc(1, {"what": what})

    def notification(self, what: str) -> None:
        """Count a notification to the webhook; `what` is delivered or failed."""
        self._counters["manybeam_notifications"].inc(1, {"what": what})

    def rollout(self, kind: str, what: str, frames: int = 1) -> None:
        """Count frames of a rollout; `what` is base, new, skipped or failed."""
        self._counters["manybeam_rollout_frames"].inc(frames, {"kind": kind, "what": what})

    def rollouts(self, count: int) -> None:
        """Set the number of rollouts that run."""
        self._gauges["manybeam_rollouts_running"].set(count)


def series_names() -> set[str]:
    """Return the names of all series at `/metrics`."""
    names = {f"{name}_total" for name in COUNTERS} | set(GAUGES)
    return names | {f"{name}_{end}" for name in HISTOGRAMS for end in ("bucket", "sum", "count")}


def gather() -> str:
    """Return our series of all nodes in the text format of Prometheus; needs a cluster."""
    import urllib3
    from ray import nodes as ray_nodes

    nodes: Any = ray_nodes
    agents = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in nodes()
        if node["Alive"] and node["MetricsExportPort"]
    ]
    pages, silent = [], 0
    with urllib3.PoolManager(retries=False, timeout=AGENT_TIMEOUT_S) as http:
        for agent in agents:
            try:
                pages.append(http.request("GET", agent).data.decode())
            except urllib3.exceptions.HTTPError:
                silent += 1
    return join(pages) + (f"# {silent} node(s) did not answer\n" if silent else "")


def join(pages: Iterable[str]) -> str:
    r"""Return our series from the pages of several agents, each family once, with our names.

    Example:
        >>> print(join(['ray_up 1.0\nray_manybeam_frames_total{ensemble="a"} 2.0']), end="")
        manybeam_frames_total{ensemble="a"} 2.0
    """
    families: dict[str, dict[str, Any]] = {}
    for line in (line for page in pages for line in page.splitlines()):
        match = _FAMILY.match(line)
        if match is None:
            continue
        ours = _SCOPE.sub("", line.replace("ray_manybeam_", PREFIX, 1)).replace(",}", "}")
        family = families.setdefault(_family(match[1]), {"about": {}, "rows": []})
        if ours.startswith("# "):
            family["about"].setdefault(ours.split()[1], ours)
        else:
            family["rows"].append(ours)
    lines = [
        line
        for name in sorted(families)
        for line in (*families[name]["about"].values(), *families[name]["rows"])
    ]
    return "".join(f"{line}\n" for line in lines)


def _family(name: str) -> str:
    ends = ("_bucket", "_sum", "_count")
    stem = next((name.removesuffix(end) for end in ends if name.endswith(end)), name)
    return stem if stem in HISTOGRAMS else name
