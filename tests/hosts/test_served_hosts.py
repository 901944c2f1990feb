"""The service over three hosts: replicas listen where the proxy asks them, and refuse others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manybeam.zoo.registry import Zoo

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
# Four callers that send a frame again and again; what each got, and when.
LOAD = """
import io, json, sys, threading, time, numpy, urllib3
from manybeam.serve import app
url = app.run_service(["graphene"], port=8100, replicas=3).url
deadline = time.monotonic() + 60
while len(app.service_state().hosts) < 3 and time.monotonic() < deadline:
    time.sleep(0.2)  # between two looks at the state of the service
stream = io.BytesIO()
numpy.save(stream, numpy.random.default_rng(0).random((48, 56), dtype=numpy.float32))
told, is_over = [], threading.Event()

def send():
    with urllib3.PoolManager(retries=False, timeout=60) as pool:
        target = url + "/v1/predict/graphene?pixel_size_pm=16"
        while not is_over.is_set():
            begun = time.monotonic()
            try:
                found = pool.request("POST", target, body=stream.getvalue()).status
            except urllib3.exceptions.HTTPError as error:
                found = repr(error)
            told.append([time.monotonic(), time.monotonic() - begun, found])

senders = [threading.Thread(target=send) for _ in range(4)]
for sender in senders:
    sender.start()
time.sleep(4)  # of load before the loss
print("lose", *app.service_state().hosts, flush=True)
time.sleep(25)  # of load during and after it: longer than any time-out that is tested
is_over.set()
for sender in senders:
    sender.join()
at = sorted(one for one, _, _ in told)
gap = max(after - before for before, after in zip(at, at[1:]))
lost = [found for _, _, found in told if found != 200]
print("told", json.dumps([len(told), lost, gap, max(took for _, took, _ in told)]))
app.stop_service()
"""


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


@pytest.mark.parametrize("fault", ["kill", "cut_off"])
def test_a_host_that_is_lost_under_load_loses_no_more_than_was_in_flight_there(
    fault: str, hosts: Hosts, tmp_path: Path, tiny_members: Callable[[int], list[Any]]
) -> None:
    home = tmp_path / "home"
    zoo = Zoo(f"sqlite:///{home}/zoo.db", (home / "weights").as_uri(), home / "cache" / "zoo")
    zoo.register("graphene", tiny_members(1), job={"kind": "train"}, alias="serving")
    load = hosts[0].begin("python", "-c", LOAD, MANYBEAM_HOME=str(home))
    out = ""
    with load:
        for line in load.stdout or ():
            out += line
            if line.startswith("lose "):
                assert line.split()[1:] == ["mb1", "mb2", "mb3"]
                getattr(hosts[2], fault)()
    assert load.returncode == 0, out[-3000:]
    told = next(line for line in out.splitlines() if line.startswith("told "))
    answered, lost, longest_gap_s, longest_s = json.loads(told.removeprefix("told "))
    print(f"{fault}: {answered} answers, {lost} lost, gap {longest_gap_s:.1f} s, {longest_s:.1f} s")
    assert answered > 100
    # Others answer what was in flight there, unless its answer had begun: of each caller, one.
    assert len(lost) <= 4
    assert longest_gap_s < 6
    assert longest_s < 10
