"""The Chrome trace loads in Perfetto: known phases, slices of one track nest, counters are numbers."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from kvplan.cli.main import run
from kvplan.scenario.schema import load_scenario
from kvplan.simulation.simulator import simulate
from kvplan.simulation.trace import chrome_trace


def test_slices_of_one_track_nest() -> None:
    """On each track, any two slices are disjoint or one contains the other; each request has one outer slice."""
    result = simulate(load_scenario("priorities", ["workload.num_requests=80", "replicas=2"]))
    document = chrome_trace(result.records, result.samples)
    tracks = defaultdict(list)
    for event in document["traceEvents"]:
        assert event["ph"] in "XbeCM"
        if event["ph"] == "X":
            assert event["dur"] >= 0
            tracks[event["pid"], event["tid"]].append((event["ts"], -event["dur"], event["name"]))
    assert {pid for pid, _ in tracks} == {0, 1}
    for slices in tracks.values():
        ends: list[int] = []
        for start, minus, _ in sorted(slices):
            while ends and ends[-1] <= start:
                ends.pop()
            assert not ends or start - minus <= ends[-1]
            ends.append(start - minus)
    outer = [name for slices in tracks.values() for *_, name in slices if name.startswith("request")]
    served = (result.records["scheduled"] >= 0).sum()
    assert len(outer) == len(set(outer)) == served


def test_no_more_tracks_than_running_requests() -> None:
    result = simulate(load_scenario("chat", ["workload.num_requests=60", "engine.max_num_seqs=5"]))
    events = chrome_trace(result.records, result.samples)["traceEvents"]
    assert len({e["tid"] for e in events if e["ph"] == "X"}) <= 5
    counters = [e for e in events if e["ph"] == "C"]
    assert {e["name"] for e in counters} == {"requests", "blocks"}
    assert max(e["args"].get("running", 0) for e in counters) <= 5


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.json"
    assert run(["simulate", "chat", "--num-prompts", "10", "--trace", str(path), "--quiet"]) == 0
    assert json.loads(path.read_text())["traceEvents"]
    assert run(["simulate", "chat", "--num-prompts", "2", "--trace", "/nowhere/x.json", "--quiet"]) == 2
    assert "there is no folder" in capsys.readouterr().err
