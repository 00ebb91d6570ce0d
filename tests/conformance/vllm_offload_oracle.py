"""Runs random scenarios on vLLM's own scheduler with its own KV offloading, and on the twin, and compares every step.

    python vllm_offload_oracle.py [--first SEED] [--count N] [--scenario FILE ...]
    python vllm_offload_oracle.py --logs offload/0.33       # that version's hashes of the bundled scenarios
    python vllm_offload_oracle.py --tiers                   # with tiers below host memory, which 0.32 has
    python vllm_offload_oracle.py --write-tiers offload/tiers

Both sides of vLLM's connector run, and its CPU manager; the copies are those of `kvplan.conformance.vllm_offload`,
which take steps. One order is not vLLM's: it walks a set of requests that have ended, here it is that of their ends.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from shutil import rmtree
from types import SimpleNamespace
from typing import Any

import vllm
import vllm_oracle as oracle
from make_golden import pack
from random_offload import random_offload_scenario, random_tiering_scenario
from random_scenarios import RANDOM_MAX_STEPS
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole
from vllm.utils.math_utils import round_up
from vllm.v1.kv_offload.base import TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec
from vllm.v1.kv_offload.tiering import async_lookup
from vllm.v1.kv_offload.tiering.fs import manager as fs_tier
from vllm.v1.outputs import KVConnectorOutput

from kvplan.conformance.vllm_offload import StepCopies, StepFiles
from kvplan.conformance.vllm_records import OffloadRecord, StepRecord
from kvplan.conformance.vllm_replay import VLLMReplay, offload_sha256
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.offloading.jobs import TransferJob
from kvplan.schedulers.vllm.offloading.tiering import TierJob
from kvplan.schedulers.vllm.output import SchedulerOutput

HERE = Path(__file__).resolve().parent
OWN_SEEDS = range(40)
"""Random scenarios whose logs are kept for versions beside 0.32: for what the bundled ones do not show."""
TIERING_SEEDS = range(60)
"""Random scenarios with tiers below host memory whose hashes are kept."""


class Copies:
    """The step-counted copies behind the face of vLLM's worker of the CPU tier."""

    def __init__(self, copies: StepCopies) -> None:
        self.copies = copies
        self.wait = copies.wait

    def submit_store(self, job_id: int, src: Any, dst: Any) -> bool:
        self.copies.submit(TransferJob(job_id, "", True, (len(src.block_ids),), ()))
        return True

    def submit_load(self, job_id: int, src: Any, dst: Any, **flags: Any) -> bool:
        self.copies.submit(TransferJob(job_id, "", False, (len(dst.block_ids),), ()))
        return True

    def get_finished(self) -> list[TransferResult]:
        return [TransferResult(job_id=job_id, success=True) for job_id in self.copies.get_finished()]

    def shutdown(self) -> None:
        """Nothing to close."""


class NoThread:
    """In place of a thread: its work is done where a step says so."""

    def __init__(self, **told: Any) -> None:
        """Whatever it would do."""

    start = join = lambda self: None


class Files:
    """The step-counted threads behind the face of vLLM's thread pool of the fs tier; its tasks write and read files."""

    steps: list[StepFiles] = []
    """The next scenario's tiers, in order."""

    def __init__(self, n_read_threads: int, n_write_threads: int, thread_name_prefix: str = "") -> None:
        self.files = self.steps.pop(0)
        assert (n_read_threads, n_write_threads) == (
            self.files.tier.n_read_threads,
            self.files.tier.n_write_threads,
        )
        self.tasks: dict[int, Any] = {}
        self.done: list[tuple[int, bool, float]] = []

    def enqueue(self, job_id: int, tasks: list[Any], is_promotion: bool, num_chunks: int) -> None:
        [self.tasks[job_id]] = tasks
        self.files.enqueue(TierJob(job_id, 0, "", is_promotion, (), num_chunks))

    def enqueue_load(self, job_id: int, n_tasks: int, tasks: list[Any]) -> None:
        paths = inspect.getclosurevars(tasks[0]).nonlocals["paths"]
        self.enqueue(job_id, tasks, True, len(paths))

    def enqueue_store(self, job_id: int, n_tasks: int, tasks: list[Any]) -> None:
        paths = tasks[0].args[0]
        self.enqueue(job_id, tasks, False, sum(not os.path.exists(path) for path in paths))

    def settle(self) -> None:
        """Move the bytes of what has ended."""
        for job in self.files.ended():
            self.tasks.pop(job.job_id)()
            self.done.append((job.job_id, True, 0.0))

    def get_finished(self) -> list[tuple[int, bool, float]]:
        self.settle()
        done, self.done = self.done, []
        return done

    def shutdown(self, wait: bool = True) -> None:
        """Nothing to stop."""


async_lookup.threading = SimpleNamespace(Thread=NoThread)
fs_tier.DualQueueThreadPool = Files


class OffloadFace(oracle.VllmFace):
    """vLLM's scheduler with its connector, and what was seen of it in the last step."""

    loads = None

    def __init__(self, config: EngineConfig, scenario: VLLMScenario) -> None:
        assert config.kv_offloading is not None
        assert scenario.offload is not None
        tier, asked = config.kv_offloading, CPUOffloadingSpec.__init__

        def sized(self: Any, offloading: Any) -> None:
            chunk = offloading.worker_kv_bytes_per_block * offloading.cache.blocks_per_chunk
            offloading.extra_config["cpu_bytes_to_use"] = tier.num_chunks * round_up(
                chunk, self.BLOCK_SIZE_ALIGNMENT
            )
            asked(self, offloading)

        CPUOffloadingSpec.__init__ = sized
        files = [StepFiles(told) for told in scenario.offload.secondary_tiers]
        Files.steps = [steps for steps in files if steps.tier.type == "fs"]
        try:
            super().__init__(config, scenario)
            self.worker = KVConnectorFactory.create_connector(
                config=self.vllm.vllm_config,
                role=KVConnectorRole.WORKER,
                kv_cache_config=self.vllm.kv_cache_config,
            )
        finally:
            CPUOffloadingSpec.__init__ = asked
        self.worker.connector_worker.worker = Copies(StepCopies(scenario.offload))
        self.connector = self.vllm.connector.connector_scheduler
        if scenario.offload.sync_load_tokens:
            budget = {"sync_load_budget_bytes": scenario.offload.sync_load_tokens, "kv_bytes_per_token": 1}
            self.connector.config = self.connector.config._replace(**budget)
        self.manager = self.connector.manager
        self.files: list[StepFiles] = files
        self.tier = getattr(self.manager, "primary_tier", self.manager)
        assert self.tier._num_chunks == tier.num_chunks
        self.results: dict[int, KVConnectorOutput] = {}
        self.names: dict[bytes, str] = {}
        self.seen = OffloadRecord()
        self.completed: list[int] = []
        self.stored: list[list[str]] = []
        self.loaded: list[list[str]] = []
        self.promotions: list[tuple[int, int, str, list[str]]] = []
        self.cascades: list[tuple[int, int, str, list[str]]] = []
        self._watch()
        self._order_ends()

    def name(self, keys: Iterable[bytes], context: Any) -> list[str]:
        for key in keys:
            group = (
                f"/{int.from_bytes(key[-4:], 'big')}"
                if len(self.connector.config.kv_group_configs) > 1
                else ""
            )
            name = f"{context.req_id}@{context.get_offload_key_position(key)}{group}"
            self.names.setdefault(key, name)
        return [self.names[key] for key in keys]

    def _watch(self) -> None:
        """Write down what goes through the connector and the tier."""
        if self.tier is not self.manager:
            self._watch_tiers()
        store, load = self.manager.prepare_store, self.manager.prepare_load
        match, alloc = self.connector.get_num_new_matched_tokens, self.connector.update_state_after_alloc
        update = self.connector.update_connector_output

        def prepare_store(keys: Any, context: Any) -> Any:
            keys = list(keys)
            self.name(keys, context)
            taken = store(keys, context)
            if taken is None:
                self.seen.store_failed.append((context.req_id, len(keys)))
            else:
                self.seen.cpu_evicted += [self.names[key] for key in taken.evicted_keys]
                self.stored.append(self.name(taken.keys_to_store, context))
            return taken

        def prepare_load(keys: Any, context: Any) -> Any:
            keys = list(keys)
            self.loaded.append(self.name(keys, context))
            return load(keys, context)

        def matched(request: Any, num_tokens: int, max_num_new_tokens: Any = None) -> Any:
            found = match(request, num_tokens, max_num_new_tokens)
            self.seen.lookups.append((request.request_id, num_tokens, found[0]))
            return found

        def allocated(request: Any, blocks: Any, num_tokens: int) -> Any:
            if num_tokens:
                self.seen.ext[request.request_id] = num_tokens
            return alloc(request, blocks, num_tokens)

        def updated(output: Any) -> Any:
            meta = output.kv_connector_worker_meta
            self.completed += sorted(meta.completed_jobs) if meta else []
            return update(output)

        self.manager.prepare_store, self.manager.prepare_load = prepare_store, prepare_load
        self.connector.get_num_new_matched_tokens = matched
        self.connector.update_state_after_alloc = allocated
        self.connector.update_connector_output = updated

    def _watch_tiers(self) -> None:
        """Write down what goes to and comes from the tiers below host memory."""
        write = self.tier.prepare_write

        def prepare_write(keys: Any, context: Any) -> Any:
            self.name(keys, context)
            taken = write(keys, context)
            if taken is not None:
                self.seen.cpu_evicted += [self.names[key] for key in taken.evicted_keys]
            return taken

        self.tier.prepare_write = prepare_write
        for i, tier in enumerate(self.manager.secondary_tiers):
            tier.submit_store = self._watched(tier.submit_store, i)
            tier.submit_load = self._watched(tier.submit_load, i)
            if tier.tier_type == "fs":
                self._look_up_in_step(tier)

    def _watched(self, submit: Any, tier: int) -> Any:
        def submitted(job: Any) -> None:
            names = self.name(job.keys, job.req_context)
            begun = self.promotions if job.is_promotion else self.cascades
            begun.append(
                (job.job_id, tier, job.req_context.req_id, names if job.is_promotion else sorted(names))
            )
            submit(job)

        return submitted

    @staticmethod
    def _look_up_in_step(tier: Any) -> None:
        """Let vLLM's own worker answer a step's look-ups once it has flushed them."""
        lookups = tier._lookup_manager
        flush = lookups.flush

        def flushed() -> None:
            tier._pool.settle()
            flush()
            lookups._lookup_queue.put(None)
            lookups._worker()

        lookups.flush = flushed

    def note_tiers(self, record: OffloadRecord) -> None:
        """Hand over what was written down of the tiers below host memory."""
        if self.tier is not self.manager:
            record.promotions += self.promotions
            record.cascades += self.cascades
            record.tier_jobs = len(self.manager._jobs)
        self.promotions, self.cascades = [], []

    def close(self) -> None:
        """Remove what the tiers below host memory keep in files."""
        if self.tier is not self.manager:
            folders = [
                tier.file_mapper.base_path for tier in self.manager.secondary_tiers if tier.tier_type == "fs"
            ]
            self.manager.shutdown()
            for folder in folders:
                rmtree(Path(folder).parent, ignore_errors=True)

    def _order_ends(self) -> None:
        """Put the set of requests that ended into the order of their ends."""
        ends: dict[str, int] = {}
        free, build = self.vllm._free_request, self.vllm._build_kv_connector_meta

        def free_request(request: Any, *args: Any, **kwargs: Any) -> Any:
            ends.setdefault(request.request_id, len(ends))
            return free(request, *args, **kwargs)

        def build_meta(connector: Any, output: Any) -> Any:
            output.finished_req_ids = dict.fromkeys(sorted(output.finished_req_ids, key=ends.__getitem__))
            return build(connector, output)

        self.vllm._free_request, self.vllm._build_kv_connector_meta = free_request, build_meta

    def schedule(self) -> SchedulerOutput:
        self.seen, self.stored, self.loaded = OffloadRecord(), [], []
        for files in self.files:
            files.clock += 1
        output = super().schedule()
        meta = self.outputs[output.step].kv_connector_metadata
        loads, stores = dict(meta.load_jobs), dict(meta.store_jobs)
        stored = [names for names in self.stored if names]
        seen, tier = self.seen, self.tier
        seen.load = [
            (job, t.req_id, len(t.dst_spec.block_ids), names)
            for (job, t), names in zip(loads.items(), self.loaded, strict=True)
        ]
        seen.store = [
            (job, t.req_id, len(t.src_spec.block_ids), names)
            for (job, t), names in zip(stores.items(), stored, strict=True)
        ]
        seen.flush = sorted(meta.jobs_to_flush or ())
        seen.cpu_used = tier._num_allocated_chunks - len(tier._free_list)
        seen.cpu_pinned = seen.cpu_used - tier._num_evictable_cache_chunks
        seen.cpu_writing = tier._num_write_pending_chunks
        seen.remote = [
            i for i, (_, r) in self.twins.items() if r.status == oracle.VllmStatus.WAITING_FOR_REMOTE_KVS
        ]
        seen.holding = [r.request_id for r in self.vllm.kv_holding_waiting]
        deferred = [block for _, blocks in self.vllm.deferred_frees for block in blocks]
        seen.deferred = sum(oracle.VERSION < (0, 33) or not block.is_null for block in deferred)
        seen.fenced, seen.jobs = len(self.connector._block_id_to_pending_jobs), len(self.connector._jobs)
        self.results[output.step] = self._execute(meta, self.outputs[output.step])
        return output

    def _execute(self, meta: Any, batch: Any) -> KVConnectorOutput:
        """The worker's part of a step, as vLLM's model runner orders it."""
        worker = self.worker
        worker.handle_preemptions(meta)
        worker.bind_connector_metadata(meta)
        worker.start_load_kv(None)
        worker.wait_for_save()
        done = worker.get_transfer_results(batch.finished_req_ids)
        output = KVConnectorOutput()
        output.finished_sending = done.finished_sending or None
        output.finished_recving = done.finished_recving or None
        output.kv_connector_worker_meta = worker.build_connector_worker_meta()
        worker.clear_connector_metadata()
        return output

    def kv_connector_output(self, step: int) -> KVConnectorOutput:
        return self.results.pop(step)


class OffloadOracleReplay(oracle.OracleReplay):
    """A run on vLLM with its tier."""

    face_kind = OffloadFace

    def _copies_run(self) -> bool:
        face: Any = self.scheduler
        return bool(face.vllm.connector.has_pending_push_work())

    def _schedule(self, record: StepRecord) -> SchedulerOutput:
        output = super()._schedule(record)
        face: Any = self.scheduler
        record.offload = face.seen
        face.note_tiers(record.offload)
        return output

    def _apply(self, record: StepRecord) -> None:
        face: Any = self.scheduler
        face.completed = []
        super()._apply(record)
        record.offload = record.offload or OffloadRecord()
        record.offload.completed = list(face.completed)
        face.note_tiers(record.offload)


def compare(data: dict[str, Any], is_async: bool) -> tuple[Counter[str], str]:
    """Run both; return counts of what vLLM did, and the first difference or why somebody refuses."""
    counts = Counter[str]()
    try:
        scenario = oracle.scenario_of(data, is_async)
    except ValueError as error:
        return counts, f"refused: {' '.join(str(error).split())[:250]}"
    try:
        replay = OffloadOracleReplay(scenario)
        theirs = replay.run(max_steps=RANDOM_MAX_STEPS).steps
        replay.scheduler.close()  # type: ignore[attr-defined]
    except (ValueError, AssertionError) as error:
        return counts, f"vLLM refuses: {(str(error) or 'assertion').splitlines()[-1][:150]}"
    ours = VLLMReplay(scenario).run(max_steps=RANDOM_MAX_STEPS).steps
    counts["steps"] = len(theirs)
    for seen in (step.offload for step in theirs if step.offload):
        counts["jobs"] += len(seen.load) + len(seen.store)
        counts["promotions"] += len(seen.promotions)
        counts["cascades"] += len(seen.cascades)
    for mine, reference in zip(ours, theirs, strict=False):
        difference = oracle.differing(mine, reference)
        if difference:
            return counts, f"DIFFERS at step {reference.step}: {difference}"
    if len(ours) != len(theirs):
        return counts, f"DIFFERS: {len(ours)} steps, vLLM {len(theirs)}"
    return counts, ""


def write_logs(folder: Path) -> None:
    """Write vLLM's hashes of all bundled scenarios and of some random ones, which are kept beside them."""
    bundled = oracle.lines_of(HERE / "offload" / "scenarios.jsonl.xz")
    drawn = (random_offload_scenario(seed, oracle.VERSION) for seed in OWN_SEEDS)
    _write(folder, [data for data in drawn if not compare(data, is_async=False)[1]], bundled)


def _write(folder: Path, own: list[dict[str, Any]], bundled: list[dict[str, Any]]) -> None:
    rows = []
    for data in bundled + own:
        for is_async in (False, True):
            scenario = oracle.scenario_of(data, is_async)
            replay = (OffloadOracleReplay if scenario.offload is not None else oracle.OracleReplay)(scenario)
            result = replay.run()
            row = {
                "name": data["name"],
                "mode": "async" if is_async else "sync",
                "vllm_version": vllm.__version__,
            }
            row |= {"sched_sha256": result.sched_sha256}
            if scenario.offload is not None:
                row |= {"state_sha256": result.state_sha256, "offload_sha256": offload_sha256(result)}
                replay.scheduler.close()
            rows.append(row | {"summary": {"steps": len(result.steps)}})
    folder.mkdir(parents=True, exist_ok=True)
    pack(folder / "scenarios.jsonl.xz", own)
    pack(folder / "golden.jsonl.xz", rows)


def write_tiers(folder: Path) -> None:
    """Write random scenarios with tiers below host memory, and vLLM's hashes of them."""
    drawn = map(random_tiering_scenario, TIERING_SEEDS)
    _write(folder, [data for data in drawn if not compare(data, is_async=False)[1]], [])


def main() -> int:
    """Compare and count."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=300, help="scenarios")
    parser.add_argument("--scenario", nargs="*", type=Path, default=[], help="files instead of seeds")
    parser.add_argument(
        "--logs", type=Path, help="write vLLM's hashes of the bundled scenarios into this folder"
    )
    parser.add_argument(
        "--write-tiers", type=Path, help="write vLLM's hashes of scenarios with such tiers there"
    )
    parser.add_argument("--tiers", action="store_true", help="with tiers below host memory (0.32)")
    options = parser.parse_args()
    if options.logs:
        write_logs(options.logs)
        return 0
    if options.write_tiers:
        write_tiers(options.write_tiers)
        return 0
    cases = [json.loads(path.read_text()) for path in options.scenario]
    seeds = range(options.first, options.first + options.count)
    draw = random_tiering_scenario if options.tiers else random_offload_scenario
    cases = cases or (draw(seed, oracle.VERSION) for seed in seeds)
    counts: Counter[str] = Counter()
    for data in cases:
        for is_async in (False, True):
            seen, word = compare(data, is_async)
            counts += seen
            counts["logs"] += 1
            counts.update(refused="refuse" in word[:14], differing=word.startswith("DIFF"))
            if word:
                print(data.get("name"), "async" if is_async else "sync", word[:600], flush=True)
    print(", ".join(f"{n} {what}" for what, n in counts.items()))
    return 1 if counts["differing"] else 0


if __name__ == "__main__":
    sys.exit(main())
