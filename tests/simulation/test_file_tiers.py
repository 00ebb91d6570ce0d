"""Files below host memory on the clock: threads that share a drive."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from simulation.test_simulate_offloading import TIERING, run

from kvplan.ground.errors import KvplanError
from kvplan.ground.units import TICKS_PER_S
from kvplan.profiles.host_links import find_drive
from kvplan.schedulers.vllm.offloading.tiering import TierJob
from kvplan.simulation.file_tiers import TimedFiles
from kvplan.simulation.in_flight import NEVER_COMES

DRIVE = replace(find_drive(read_gb_s=1, write_gb_s=0.5), latency_s=0.0)
"""A file of a million bytes is read in a millisecond and written in two."""
MS = TICKS_PER_S // 1000


def files(latency_s: float = 0.0, threads: tuple[int, int] = (16, 16)) -> TimedFiles:
    return TimedFiles(replace(DRIVE, latency_s=latency_s), 1_000_000, *threads)


def job(number: int, num_files: int, is_read: bool) -> TierJob:
    return TierJob(number, 0, "r", is_read, (), num_files)


def ends(tier: TimedFiles, jobs: list[TierJob]) -> dict[int, float]:
    """Job -> ms at which it ends, all of them queued at once; looked at ten times a millisecond."""
    for each in jobs:
        tier.enqueue(each)
    found: dict[int, float] = {}
    for tenth in range(1, 2000):
        tier.begin(tenth * MS // 10)
        found |= {ended.job_id: tenth / 10 for ended in tier.ended()}
    assert tier.is_idle
    return found


def test_alone_a_job_goes_file_by_file() -> None:
    """n files take n times what one takes, opening and closing included: one job is one thread's."""
    assert ends(files(), [job(0, 10, True)]) == {0: 10.0}
    assert ends(files(), [job(0, 10, False)]) == {0: 20.0}
    assert ends(files(latency_s=1e-3), [job(0, 10, True)]) == {0: 20.0}


def test_jobs_of_one_direction_share_the_drive() -> None:
    """Two take twice as long side by side, and neither waits for the other direction; waiting costs no rate."""
    assert ends(files(), [job(0, 10, True), job(1, 10, True), job(2, 10, False)]) == {
        0: 20.0,
        1: 20.0,
        2: 20.0,
    }
    assert ends(files(), [job(0, 5, True), job(1, 10, True)]) == {0: 10.0, 1: 15.0}
    assert ends(files(latency_s=1e-3), [job(0, 10, True), job(1, 10, True)]) == {0: 20.0, 1: 20.0}


def test_threads_bound_what_runs_and_prefer_their_direction() -> None:
    """Two threads, one for each way: the third job waits for a thread, and each takes its own kind first."""
    jobs = [job(0, 5, True), job(1, 5, False), job(2, 5, False), job(3, 5, True)]
    assert ends(files(threads=(1, 1)), jobs) == {0: 5.0, 3: 10.0, 1: 10.0, 2: 20.0}


def test_the_drive_never_moves_more_than_it_can() -> None:
    """Bytes over the time in which it was busy are its rate where threads leave it no pause."""
    tier = files()
    ends(tier, [job(i, 3 + i, i % 2 == 0) for i in range(9)])
    for is_read, rate in ((True, 1e9), (False, 0.5e9)):
        assert tier.files[is_read] * 1e6 / tier.busy_s[is_read] == pytest.approx(rate)


@pytest.mark.parametrize("every", [1, 7, 50])
def test_looking_changes_nothing(every: int) -> None:
    """Jobs end when they end, and the drive is as busy, however often somebody asks; `next_end` says when to."""
    often, seldom = files(threads=(2, 2)), files(threads=(2, 2))
    seen: set[int] = set()
    for tier in (often, seldom):
        tier.log = []
        for i in range(9):
            tier.enqueue(job(i, 3 + i, i % 2 == 0))
    for tenth in range(every, 1000 + every, every):
        often.begin(tenth * MS // 10)
        seen |= {ended.job_id for ended in often.ended()}
    while seldom.next_end < NEVER_COMES:
        seldom.begin(seldom.next_end)
        assert seldom.ended(), "nothing ended when something was to end"
    assert [one.end for one in often.log or ()] == [one.end for one in seldom.log or ()]
    assert len(seen) == 9
    assert often.busy_s == seldom.busy_s


def tiers(**changes: Any) -> dict[str, Any]:
    return {"spec_name": TIERING, "secondary_tiers": [changes]}


def test_what_host_memory_forgets_comes_back_from_files() -> None:
    """Half a GiB with files finds what 20 GiB find, and computes as little; without files it forgets nearly all."""
    small, large = {"engine": {"kv_offloading_size": 0.5}}, {"engine": {"kv_offloading_size": 20}}
    with_files, roomy, forgets = run(**small, kv_offloading=tiers()), run(**large), run(**small)
    assert with_files.totals.prefill_tokens == roomy.totals.prefill_tokens < forgets.totals.prefill_tokens
    assert with_files.offload is not None
    [figures] = with_files.offload["file_tiers"]
    assert figures["read_bytes"] > 0
    assert figures["files"] * figures["file_bytes"] == figures["written_bytes"]


def test_a_slower_drive_is_slower() -> None:
    """A promotion is taken however slow it is: first tokens come later the slower the drive reads."""
    small = {"engine": {"kv_offloading_size": 0.5}}
    ttft = [
        run(**small, kv_offloading=tiers(read_gb_s=rate)).summaries()["ttft"].mean for rate in (50, 2, 0.2)
    ]
    assert ttft == sorted(ttft)
    assert ttft[-1] > run(**small).summaries()["ttft"].mean


def test_vllms_json_says_what_the_keys_say() -> None:
    """`engine.kv_transfer_config` and `kv_offloading:` describe one tier; both at once are refused."""
    extra = {
        "cpu_bytes_to_use": 2**29,
        "spec_name": TIERING,
        "secondary_tiers": [{"type": "fs", "root_dir": "/f"}],
    }
    told = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}
    flag = run(engine={"kv_offloading_size": None, "kv_transfer_config": told})
    keys = run(engine={"kv_offloading_size": 0.5}, kv_offloading=tiers())
    assert flag.offload == keys.offload
    with pytest.raises(
        KvplanError, match=r"kv_offloading: engine\.kv_transfer_config says how the tier is kept"
    ):
        run(engine={"kv_transfer_config": told}, kv_offloading={"eviction_policy": "arc"})
