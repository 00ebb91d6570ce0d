"""The Chrome trace loads in Perfetto: known phases, slices of one track nest, counters are numbers."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from simulation.test_file_tiers import tiers
from simulation.test_simulate_offloading import scenario

from kvplan.cli.main import run
from kvplan.scenario.schema import load_scenario, parse_scenario
from kvplan.simulation.observer import Observer
from kvplan.simulation.simulator import simulate
from kvplan.simulation.trace import COPY_TRACKS, FILE_TRACKS, chrome_trace


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


def test_copies_have_tracks_of_their_own() -> None:
    """Per replica one of loads and one of stores, in which slices follow each other; they add up to what was copied."""
    told = [
        "workload.num_requests=12",
        "replicas=2",
        "engine.num_gpu_blocks_override=2600",
        "engine.kv_offloading_size=9",
    ]
    result = simulate(load_scenario("offload_tools", told), observer=Observer(copies=True))
    events = chrome_trace(result.records, result.samples, copies=result.copies)["traceEvents"]
    assert result.offload is not None
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["tid"] in (COPY_TRACKS[False][0], COPY_TRACKS[True][0]):
            tracks[event["pid"], event["tid"]].append(event)
    assert len(tracks) == 4
    for made in tracks.values():
        assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(made))
    for is_store, name in ((False, "load"), (True, "store")):
        mine = [
            event for (_, tid), made in tracks.items() if tid == COPY_TRACKS[is_store][0] for event in made
        ]
        assert len(mine) == result.offload[f"{name}_jobs"]
        assert sum(event["args"]["blocks"] for event in mine) == result.offload[f"{name}_blocks"]
        assert all(event["name"].startswith(f"{name} request ") for event in mine)
    chunks = [e["args"]["used"] for e in events if e["name"] == "tier chunks"]
    assert 0 < max(chunks) <= result.offload["chunks"]


def test_file_jobs_have_tracks_of_their_own() -> None:
    """Slices of one follow each other, on no more tracks than threads; files and bytes add up to the run's sums."""
    slow = {"read_gb_s": 0.8, "write_gb_s": 0.1, "n_read_threads": 1, "n_write_threads": 1}
    told = scenario(engine={"kv_offloading_size": 1}, kv_offloading=tiers(**slow)) | {"replicas": 2}
    result = simulate(parse_scenario(told), observer=Observer(copies=True))
    document = chrome_trace(result.records, result.samples, copies=result.copies, file_jobs=result.file_jobs)
    events = document["traceEvents"]
    assert result.offload is not None
    [tier] = result.offload["file_tiers"]
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["tid"] >= FILE_TRACKS[True][0]:
            tracks[event["pid"], event["tid"]].append(event)
    assert {pid for pid, _ in tracks} == {0, 1}
    assert all(a["ts"] + a["dur"] <= b["ts"] for made in tracks.values() for a, b in pairwise(made))
    for is_read, name in ((True, "read"), (False, "written")):
        first, _ = FILE_TRACKS[is_read]
        mine = [e for (_, tid), made in tracks.items() if first <= tid < first + 2 for e in made]
        assert sum(e["args"]["bytes"] for e in mine) == tier[f"{name}_bytes"] > 0
        assert sum(e["args"]["files"] for e in mine) * tier["file_bytes"] == tier[f"{name}_bytes"]
    assert len({tid for _, tid in tracks}) <= 4
    assert any(e["args"]["queued_us"] for made in tracks.values() for e in made)
    held = [e["args"]["held"] for e in events if e["name"] == "files"]
    assert held == sorted(held)
    assert 0 < held[-1] <= tier["files"]
    assert any(e["args"]["writes"] for e in events if e["name"] == "file jobs")


@pytest.mark.parametrize("kept", [{}, tiers()])
def test_looking_at_copies_changes_nothing(kept: dict[str, Any]) -> None:
    """The run with its copies listed is the run without."""
    told = parse_scenario(scenario(engine={"kv_offloading_size": 0.5}, kv_offloading=kept))
    seen, plain = simulate(told, observer=Observer(copies=True)), simulate(told)
    assert seen.to_dict() == plain.to_dict()
    assert seen.copies
    assert not plain.copies
    assert bool(seen.file_jobs) == bool(kept)
    assert not plain.file_jobs


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
