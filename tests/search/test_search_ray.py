"""A sweep on a real Ray cluster, started and stopped here. Opt-in, since Ray is large: `make ray`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import TESTS
from test_search import BASE, OVER
from worker_killer import Killer

from kvplan.cli.main import run
from kvplan.search.execution import Execution, execute
from kvplan.search.grid import Axis, make_points, read_base
from kvplan.search.sweeping import sweep_rows

pytestmark = [
    pytest.mark.skipif("KVPLAN_RAY" not in os.environ, reason="opt-in: make ray starts a local Ray cluster"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
PORT = 26379


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A head node in processes of its own, as `ray start` makes it."""
    ray = Path(sys.executable).with_name("ray")
    start = [ray, "start", "--head", "--port", str(PORT), "--num-cpus", "2", "--include-dashboard", "false",
             "--disable-usage-stats"]  # fmt: skip
    subprocess.run(start, check=True, capture_output=True)
    yield f"127.0.0.1:{PORT}"
    subprocess.run([ray, "stop", "--force"], check=True, capture_output=True)


def test_a_local_cluster_gives_the_same_rows() -> None:
    """Started and stopped by the sweep itself: the same rows in the same order."""
    import ray

    here = sweep_rows(BASE, OVER, execution=Execution(workers=2)).rows
    assert sweep_rows(BASE, OVER, execution=Execution("ray", 2)).rows == here
    assert not ray.is_initialized()


def test_a_cluster_at_an_address_gives_the_same_file(cluster: str, tmp_path: Path) -> None:
    words = ["sweep", "long_thinking", "--quiet", "--set", "workload.num_requests=40", "--workers", "2",
             "--over", "gpu=h100,h200,nonsense", "workload.arrivals.rate=1,4", "--output"]  # fmt: skip
    assert run([*words, str(tmp_path / "ray.csv"), "--backend", "ray", "--address", cluster]) == 0
    assert run([*words, str(tmp_path / "local.csv")]) == 0
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()


@pytest.mark.parametrize("forever", [False, True])
def test_an_actor_that_dies_is_replaced(
    tmp_path: Path, forever: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    points = make_points(read_base(BASE), [Axis("engine.max_num_seqs", tuple(range(1, 9)))])
    found = list(execute(points, Execution("ray", 2), Killer(tmp_path, 5, forever)))
    assert sorted(f.point.index for f in found) == list(range(8))
    assert [f.point.settings["engine.max_num_seqs"] for f in found if f.row["error"]] == [5] * forever


def test_a_cluster_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "chat", "--quiet", "--backend", "ray", "--over", "replicas=1,2", "--address"]
    for address, said in (("127.0.0.1:9", "no Ray cluster answers there"), ("nowhere", "write host:port")):
        assert run([*words, address]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
