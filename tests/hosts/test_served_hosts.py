"""The service over three hosts: replicas listen where the proxy asks them, and refuse others."""

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.hosts
Hosts = list[Any]  # `Host` of conftest.py

SERVE = """
import csv, json, pathlib, time, urllib3
from manybeam.serve import app
from manybeam.serve.haproxy import STATISTICS
url = app.run_service([], port=8100, replicas=3).url
known = app._replica_variables()

def replicas():
    page = urllib3.request("GET", f"http://127.0.0.1:{known[STATISTICS]}/stats;csv").data.decode()
    rows = csv.DictReader(page[2:].splitlines())
    return [row for row in rows if "REPLICA" in row["svname"] and row["status"] == "UP"]

deadline = time.monotonic() + 60
while len(replicas()) < 3 and time.monotonic() < deadline:
    time.sleep(0.2)  # Ray tells HAProxy of a replica some time after its start
asked = [urllib3.request("GET", url + "/readyz", retries=False).status for _ in range(60)]
folder = pathlib.Path(known["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent
lines = [line.split() for path in folder.glob("*/*.cfg") for line in path.open()]
beyond = [words[2] for words in lines if words[:1] == ["server"] and words[2].startswith("10.")]
past = [urllib3.request("GET", f"http://{one}/readyz", retries=False).status for one in beyond]
print("told", json.dumps([asked, [int(row["stot"]) for row in replicas()], past]))
"""
STOP = "from manybeam.serve.app import stop_service; stop_service()"


def test_replicas_on_other_hosts_answer_the_proxy_and_nobody_else(
    hosts: Hosts, tmp_path: Path
) -> None:
    home = {"MANYBEAM_HOME": str(tmp_path / "home")}
    out = hosts[0].run("python", "-c", SERVE, **home)
    told = next(line for line in out.splitlines() if line.startswith("told "))
    asked, answered, past_the_proxy = json.loads(told.removeprefix("told "))
    assert asked == [200] * 60
    assert len(answered) == 3
    assert min(answered) > 0  # every replica had its share
    assert past_the_proxy
    assert set(past_the_proxy) == {403}
    replicas = []
    for host in hosts:
        rows = json.loads(_list_in(host.run("manybeam", "doctor", "-o", "json", **home)))
        listening = [row for row in rows if row["check"] == "listens"]
        assert "raylet" in {row["process"].split()[0] for row in listening}
        assert all(row["reason"] and row["closed_by"] for row in listening)
        own = [row for row in listening if row["what"] == "a replica of the service"]
        inside = "127.0.0.1" if host is hosts[0] else host.address
        assert {row["address"] for row in own} <= {inside}
        replicas += own
        front = [row for row in listening if "proxy" in row["what"] or row["port"] == 8100]
        assert {row["address"] for row in front} <= {"127.0.0.1"}
    assert len(replicas) == 3
    hosts[0].run("python", "-c", STOP, **home)


def _list_in(text: str) -> str:
    """Return the list that a command printed, without the messages around it."""
    return text[text.index("[\n") : text.rindex("]") + 1]
