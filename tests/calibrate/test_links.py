"""Links measured: a run's path on a CPU, what rows tell, and who reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="measuring needs torch")

from kvplan.calibrate.card_links import learn_links  # noqa: E402
from kvplan.calibrate.measure import links  # noqa: E402
from kvplan.calibrate.measurements import Measurements, Row, read_measurements  # noqa: E402
from kvplan.calibrate.session import MeasurementSession, open_session  # noqa: E402
from kvplan.ground.gpu import get_gpu  # noqa: E402
from kvplan.profiles.host_links import find_drive, find_host_link  # noqa: E402
from kvplan.profiles.measured_links import MeasuredLinks  # noqa: E402

CPU = torch.device("cpu")
SMALL = {"largest_bytes": 1 << 20, "file_bytes": 1 << 22}


def session(folder: Path) -> MeasurementSession:
    return open_session(folder / "m.jsonl", {"op": "machine", "machine": "here", "schema_version": 1})


def rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_walks_all_of_it_once(tmp_path: Path) -> None:
    """Copies both ways and files both ways, by one thread and many; another run adds nothing, no file stays."""
    links.measure_links(session(tmp_path), CPU, **SMALL)
    found = rows(tmp_path / "m.jsonl")
    assert not any("skipped" in row for row in found)
    seen = {(row["op"], row.get("direction"), row.get("num_threads")) for row in found if "time_s" in row}
    assert seen == {("host_link", way, None) for way in ("to_device", "to_host")} | {
        (op, None, threads) for op in ("file_read", "file_write") for threads in links.THREADS
    }
    assert all(row["time_s"] > 0 for row in found if "time_s" in row)
    links.measure_links(session(tmp_path), CPU, **SMALL)
    assert rows(tmp_path / "m.jsonl") == found
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


def test_a_probe_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full drive and memory that cannot be pinned are noted, and the run goes on."""

    def full(*args: Any, **told: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(links, "_write", full)
    links.measure_links(session(tmp_path), CPU, **SMALL)
    found = rows(tmp_path / "m.jsonl")
    [skipped] = [row for row in found if "skipped" in row]
    assert "No space left" in skipped["skipped"]
    assert sum(row["op"] == "host_link" for row in found) > 0
    monkeypatch.setattr(torch, "empty", full)
    other = tmp_path / "other"
    other.mkdir()
    links.measure_links(session(other), CPU, **SMALL)
    assert sum("skipped" in row for row in rows(other / "m.jsonl")) == 2


def test_a_deadline_leaves_the_rest_to_the_next_run(tmp_path: Path) -> None:
    """What was not begun is begun then."""
    links.measure_links(session(tmp_path), CPU, deadline=0.0, **SMALL)
    assert len(rows(tmp_path / "m.jsonl")) == 1


def made(rate: float, latency_s: float, *, pinned: bool = True, direct: bool = True) -> Measurements:
    """Rows of links and drives of stated rates."""
    copies = [
        {"op": "host_link", "direction": way, "num_bytes": n, "num_copies": 1, "pinned": pinned,
         "time_s": latency_s + n / (rate * factor)}
        for way, factor in (("to_device", 1.0), ("to_host", 0.5)) for n in (1 << 16, 1 << 22, 1 << 28)
    ]  # fmt: skip
    files = [
        {"op": op, "file_bytes": n, "num_files": 32, "num_threads": threads, "direct": direct,
         "time_s": 32 * n / rate if threads > 1 else 32 * (latency_s + n / rate)}
        for op in ("file_read", "file_write") for n in (1 << 18, 1 << 22) for threads in (1, 16)
    ]  # fmt: skip
    return Measurements({"machine": "here"}, {}, 0, links=copies + files)


def test_rates_and_latencies_are_what_made_the_rows() -> None:
    """From exact rows the exact figures."""
    found = learn_links(made(5e10, 2e-5))
    assert found is not None
    assert found.load is not None and found.store is not None  # noqa: PT018
    assert found.load.gb_s == pytest.approx(50, rel=0.01)
    assert found.store.gb_s == pytest.approx(25, rel=0.01)
    assert found.load.latency_us == pytest.approx(20, rel=0.01)
    for drive in (found.file_read, found.file_write):
        assert drive is not None
        assert (drive.gb_s, drive.latency_us) == pytest.approx((50, 20))


def test_what_tells_nothing_is_left_out() -> None:
    """Copies of memory that is not pinned are no link, files in the page cache no drive."""
    files = learn_links(made(5e10, 2e-5, pinned=False))
    assert files is not None
    assert files.load is None
    assert files.store is None
    copies = learn_links(made(5e10, 2e-5, direct=False))
    assert copies is not None
    assert copies.file_read is None
    assert learn_links(made(5e10, 2e-5, pinned=False, direct=False)) is None
    assert learn_links(Measurements({}, {}, 0)) is None


def test_measured_comes_after_stated_and_before_the_catalog() -> None:
    """A profile's links are taken where nothing is stated, with their ranges and source."""
    measured, card = learn_links(made(5e10, 2e-5)), get_gpu("h100")
    link, drive = find_host_link(card, measured=measured), find_drive(measured=measured)
    assert link.name == drive.name == "measured"
    assert "pinned copies on here" in link.source
    assert link.seconds(1e9, is_store=True) > 1.9 * link.seconds(1e9)
    assert find_host_link(card, gb_s=40, measured=measured).source == "stated"
    assert find_host_link(card, "pcie4", measured=measured).name == "pcie4"
    assert find_drive("nvme5", measured=measured).name == "nvme5"
    assert find_drive(read_gb_s=3, measured=measured).read_bytes_per_s == 3e9
    assert find_host_link(card, measured=MeasuredLinks()) == find_host_link(card)


def test_rows_are_read_beside_steps(tmp_path: Path) -> None:
    """A file of steps and links has both."""
    links.measure_links(session(tmp_path), CPU, **SMALL)
    step = {"op": "decode_step", "machine": "here", "num_decodes": 1, "decode_context": 64, "time_s": 1e-3}
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write(json.dumps(step) + "\n")
    found = read_measurements([tmp_path / "m.jsonl"])
    assert {row["op"] for row in found.links} == {"host_link", "file_read", "file_write"}
    assert set(found.families) == {"step"}
