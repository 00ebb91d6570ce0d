"""Runs random scenarios on vLLM's own scheduler and on the twin, and compares every step.

    python vllm_oracle.py [--first SEED] [--count N] [--scenario FILE ...]

Takes whatever vLLM Python finds, and the twin's rules of that version. `make oracle` installs the CPU wheel of 0.32.0
(no model, no GPU) into a virtual environment of its own; `make oracle VLLM=0.33` puts another version's Python in front
of it. One driver, `kvplan.conformance.vllm_replay`, runs both engines: here vLLM's scheduler wears the twin's face.
"""

from __future__ import annotations

import json
import logging
import lzma
import os
import sys
import tempfile
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import vllm
from make_golden import pack
from random_scenarios import BEYOND_PLAIN, RANDOM_MAX_STEPS, SCENARIOS, run_hash
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    SpeculativeConfig,
    VllmConfig,
)
from vllm.sampling_params import SamplingParams
from vllm.v1 import kv_cache_interface as specs
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request as VllmRequest
from vllm.v1.request import RequestStatus as VllmStatus
from vllm.v1.structured_output import StructuredOutputManager

from kvplan.conformance.vllm_records import StepRecord
from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.request import Request, RequestStatus
from kvplan.schedulers.vllm.config import EngineConfig, KVCacheGroup
from kvplan.schedulers.vllm.output import SchedulerOutput
from kvplan.schedulers.vllm.rules import parse_version

logging.disable(logging.WARNING)
HERE = Path(__file__).resolve().parent
VERSION = parse_version(vllm.__version__)
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1 << 20,
    "vocab_size": 1 << 20,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}


def model_folder(num_layers: int, **keys: Any) -> str:
    """A model that is a config and nothing else."""
    folder = tempfile.mkdtemp(prefix="kvplan-oracle-")
    (Path(folder) / "config.json").write_text(json.dumps(MODEL | {"num_hidden_layers": num_layers} | keys))
    return folder


FOLDERS = {layers: model_folder(layers) for layers in (1, 2)}
DSPARK = {"architectures": ["Qwen3DSparkModel"], "model_type": "qwen3", "block_size": 4}


def found(name: str, *modules: str) -> Any:
    """Something of vLLM that stood in different modules; None in versions without it."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError):
            continue
    return None


def known(call: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """The arguments that this version knows; raises ValueError where one that it does not know asks for something."""
    names = signature(call).parameters
    unknown = {
        k: v for k, v in arguments.items() if k not in names and v != EngineConfig.model_fields[k].default
    }
    if unknown:
        raise ValueError(f"no {', '.join(unknown)} in this version")
    return {k: v for k, v in arguments.items() if k in names}


get_hash_fn_by_name = found("get_hash_fn_by_name", "vllm.utils.hashing", "vllm.utils")
get_kv_cache_groups = found(
    "get_kv_cache_groups", "vllm.v1.core.kv_cache_planning", "vllm.v1.core.kv_cache_utils"
)


def kv_cache_spec(group: KVCacheGroup, config: EngineConfig) -> specs.KVCacheSpec:
    """One group's spec in vLLM's classes."""
    sizes: dict[str, Any] = {
        "block_size": group.block_size,
        "num_kv_heads": group.kv_heads,
        "head_size": group.head_size,
        "dtype": torch.bfloat16,
    }
    if group.kind == "full":
        return specs.FullAttentionSpec(**sizes)
    if group.kind == "circular_buffer":
        return specs.CircularBufferSpec(**sizes)
    if group.bounded_replay:
        return specs.SlidingWindowMLASpec(
            **sizes, sliding_window=group.window, model_version="deepseek_v4", bounded_replay=True
        )
    if group.kind == "sliding_window":
        return specs.SlidingWindowSpec(**sizes, sliding_window=group.window)
    if group.kind == "chunked_local":
        return specs.ChunkedLocalAttentionSpec(**sizes, attention_chunk_size=group.chunk)
    return specs.MambaSpec(
        block_size=group.block_size,
        shapes=((group.state_bytes or config.block_size * 64,),),
        dtypes=(torch.int8,),
        mamba_cache_mode=group.mode,
        num_speculative_blocks=config.num_speculative_tokens,
        num_prefill_checkpoint_blocks=group.checkpoint_blocks,
        prefill_checkpoint_alignment=group.checkpoint_alignment,
    )


def tier_config(tier: dict[str, Any]) -> dict[str, Any]:
    """A tier below host memory, files in a folder of their own."""
    if tier["type"] == "example":
        return {"type": "example"}
    return tier | {"root_dir": tempfile.mkdtemp(prefix="kvplan-oracle-")}


def kv_transfer_config(config: EngineConfig) -> Any:
    """The tier beyond the GPU, all but its size."""
    from vllm.config import KVTransferConfig

    told = config.kv_offloading.model_dump(
        exclude={"num_chunks", "kv_bytes_per_token", "secondary_tiers"}, exclude_defaults=True
    )
    if config.kv_offloading.secondary_tiers:
        tiers = [tier.model_dump() for tier in config.kv_offloading.secondary_tiers]
        told |= {"spec_name": "TieringOffloadingSpec", "secondary_tiers": list(map(tier_config, tiers))}
    return KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        engine_id=f"oracle-{os.getpid()}",
        kv_connector_extra_config=told,
    )


def vllm_config(config: EngineConfig) -> VllmConfig:
    """The same engine in vLLM's config classes."""
    model = ModelConfig(
        model=FOLDERS[2], skip_tokenizer_init=True, max_model_len=config.max_model_len, enforce_eager=True
    )
    scheduler = SchedulerConfig(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        is_encoder_decoder=False,
        enable_chunked_prefill=config.enable_chunked_prefill,
        policy=config.policy,
        async_scheduling=False,
        long_prefill_token_threshold=config.long_prefill_token_threshold,
        **known(
            SchedulerConfig,
            watermark=config.watermark,
            scheduler_reserve_full_isl=config.scheduler_reserve_full_isl,
            prefill_schedule_interval=config.prefill_schedule_interval,
            max_num_active_seqs=config.max_num_active_seqs,
            max_num_scheduled_tokens=config.max_num_scheduled_tokens,
            long_prefill_token_threshold_adaptive=config.long_prefill_token_threshold_adaptive,
        ),
    )
    modes = {group.mode for group in config.groups if group.kind == "mamba"}
    cache = CacheConfig(
        block_size=config.block_size,
        enable_prefix_caching=config.enable_prefix_caching,
        **known(
            CacheConfig,
            prefix_match_unit=config.prefix_match_unit,
            prefix_cache_retention_interval=config.prefix_cache_retention_interval,
            enable_mamba_shared_prefix_checkpoint=config.enable_mamba_shared_prefix_checkpoint,
        ),
        **({"mamba_cache_mode": modes.pop()} if modes else {}),
    )
    extra: dict[str, Any] = {}
    if config.num_speculative_tokens:
        drafter = {"eagle": {"model": FOLDERS[1]}, "draft_model": {"model": FOLDERS[2]}}
        if config.spec_method == "dspark":
            drafter["dspark"] = {"model": model_folder(1, **DSPARK)}
            VllmConfig._get_v1_model_runner_unsupported_features = lambda self: []  # no runner runs here
        lookup = {"prompt_lookup_max": 3, "prompt_lookup_min": 1}
        extra["parallel_config"] = ParallelConfig()
        extra["speculative_config"] = SpeculativeConfig(
            method=config.spec_method,
            num_speculative_tokens=config.num_speculative_tokens,
            target_model_config=model,
            target_parallel_config=extra["parallel_config"],
            **known(
                SpeculativeConfig,
                disable_lookahead_block_hashes=config.disable_lookahead_block_hashes,
                num_speculative_tokens_per_batch_size=config.num_speculative_tokens_per_batch_size,
            ),
            **drafter.get(config.spec_method, lookup),
        )
    if config.kv_offloading is not None:
        extra["kv_transfer_config"] = kv_transfer_config(config)
    whole = VllmConfig(
        model_config=model,
        scheduler_config=scheduler,
        cache_config=cache,
        device_config=DeviceConfig("cpu"),
        **extra,
    )
    whole.scheduler_config.async_scheduling = config.async_scheduling  # the CPU platform turns it off
    whole.cache_config.num_gpu_blocks = config.num_gpu_blocks
    return whole


def vllm_scheduler(config: EngineConfig, scenario: VLLMScenario) -> tuple[Scheduler, VllmConfig]:
    """vLLM's scheduler for the same engine; layers are grouped by vLLM itself."""
    whole = vllm_config(config)
    register = found("register_all_kvcache_specs", "vllm.v1.core.single_type_kv_cache_manager")
    if register:
        register(whole)
    whole.scheduler_config.disable_hybrid_kv_cache_manager = False
    if scenario.kv_cache_layers:
        whole.cache_config.kv_cache_layout = "LBNHC"
        layers = {}
        for i, layer in enumerate(scenario.kv_cache_layers):
            whole_state = layer.kind == "mamba" and layer.mode == "none"
            size = layer.block_size or (config.max_model_len if whole_state else config.block_size)
            spec = kv_cache_spec(layer.model_copy(update={"block_size": size}), config)
            layers |= {f"{i}.{j}": spec for j in range(layer.layers)}
        groups = get_kv_cache_groups(whole, layers)
    else:
        groups = [
            specs.KVCacheGroupSpec(
                [str(i)],
                kv_cache_spec(group, config),
                **({"is_eagle_group": True} if group.eagle and VERSION >= (0, 32) else {}),
            )
            for i, group in enumerate(config.groups)
        ]
    cache = specs.KVCacheConfig(
        num_blocks=config.num_gpu_blocks,
        kv_cache_tensors=[],
        kv_cache_groups=groups,
        **known(specs.KVCacheConfig, prefix_cache_retention_interval=config.prefix_cache_retention_interval),
    )
    named = [g for g in groups if getattr(g.kv_cache_spec, "prefix_cacheable", True)]
    whole.cache_config.block_size = min(group.kv_cache_spec.block_size for group in named or groups)
    sizes = {"block_size": whole.cache_config.block_size, "hash_block_size": whole.cache_config.block_size}
    resolve = found("resolve_kv_cache_block_sizes", "vllm.v1.core.kv_cache_utils")
    if resolve:
        sizes = dict(zip(sizes, resolve(cache, whole), strict=True))
    scheduler = (AsyncScheduler if config.async_scheduling else Scheduler)(
        vllm_config=whole,
        kv_cache_config=cache,
        structured_output_manager=StructuredOutputManager(whole),
        log_stats=True,
        **{name: size for name, size in sizes.items() if name in signature(Scheduler).parameters},
    )
    return scheduler, whole


class CountedPool:
    """vLLM's block pool, counted as the twin's counts itself."""

    def __init__(self, scheduler: Scheduler, num_gpu_blocks: int) -> None:
        self.coordinator = scheduler.kv_cache_manager.coordinator
        self.pool = scheduler.kv_cache_manager.block_pool
        self.num_gpu_blocks = num_gpu_blocks
        self.num_taken = self.num_evicted = self.num_recycled = 0
        take, evict = self.pool.get_new_blocks, self.pool._maybe_evict_cached_block
        skip = self.coordinator.remove_skipped_blocks

        def counted_take(num_blocks: int) -> Any:
            self.num_taken += num_blocks
            return take(num_blocks)

        def counted_evict(block: Any) -> bool:
            evicted = bool(evict(block))
            self.num_evicted += evicted
            return evicted

        def counted_skip(*args: Any, **kwargs: Any) -> None:
            before = self.get_num_free_blocks()
            skip(*args, **kwargs)
            self.num_recycled += self.get_num_free_blocks() - before

        self.pool.get_new_blocks = counted_take
        self.pool._maybe_evict_cached_block = counted_evict
        self.coordinator.remove_skipped_blocks = counted_skip

    def get_num_free_blocks(self) -> int:
        return int(self.pool.get_num_free_blocks())

    @property
    def num_cached_blocks(self) -> int:
        return sum(block.block_hash is not None for block in self.pool.blocks)

    @property
    def num_used_by_group(self) -> list[int]:
        tables = (manager.req_to_blocks.values() for manager in self.coordinator.single_type_managers)
        return [len({b.block_id for table in group for b in table if not b.is_null}) for group in tables]


class VllmFace:
    """vLLM's scheduler with the methods that `VLLMReplay` calls."""

    loads = None

    def __init__(self, config: EngineConfig, scenario: VLLMScenario) -> None:
        self.config = config
        self.vllm, whole = vllm_scheduler(config, scenario)
        pool = CountedPool(self.vllm, config.num_gpu_blocks)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)
        self.twins: dict[str, tuple[Request, VllmRequest]] = {}
        self.outputs: dict[int, Any] = {}
        self.tokens: dict[tuple[str, int], int] = {}
        self.current_step = 0
        hash_function = get_hash_fn_by_name(whole.cache_config.prefix_caching_hash_algo)
        kv_cache_utils.init_none_hash(hash_function)
        self.hasher = None
        if config.enable_prefix_caching or config.kv_offloading is not None:
            unit = getattr(self.vllm, "hash_block_size", self.vllm.cache_config.block_size)
            lookahead = getattr(self.vllm, "num_hash_lookahead_tokens", 0)
            self.hasher = kv_cache_utils.get_request_block_hasher(
                unit, hash_function, *([lookahead] if lookahead else [])
            )

    @property
    def running(self) -> list[VllmRequest]:
        return list(self.vllm.running)

    @property
    def waiting(self) -> list[VllmRequest]:
        return list(self.vllm.waiting)

    def has_requests(self) -> bool:
        return bool(self.vllm.has_requests())

    def token(self, name: str, index: int) -> int:
        """A number for each named token."""
        return self.tokens.setdefault((name, index), len(self.tokens) + 1)

    def add_request(self, request: Request) -> None:
        prompt = [self.token(s.name, i) for s in request.prompt for i in range(s.start, s.end)]
        caps = {"max_load_tokens": request.max_load_tokens, "max_offload_tokens": request.max_offload_tokens}
        caps = {name: cap for name, cap in caps.items() if cap is not None}
        params = SamplingParams(
            max_tokens=request.max_tokens,
            ignore_eos=True,
            stop_token_ids=[self.token(f"out:{request.request_id}", request.stop_at - 1)]
            if request.stop_at
            else None,
            extra_args={"kv_transfer_params": caps} if caps else None,
        )
        theirs = VllmRequest(
            request_id=request.request_id,
            prompt_token_ids=prompt,
            sampling_params=params,
            pooling_params=None,
            arrival_time=float(request.arrival_time),
            priority=request.priority,
            block_hasher=self.hasher,
            **({"eos_token_id": None} if "eos_token_id" in signature(VllmRequest).parameters else {}),
        )
        self.twins[request.request_id] = (request, theirs)
        self.vllm.add_request(theirs)

    def schedule(self) -> SchedulerOutput:
        ran = {request.request_id for request in self.vllm.running}
        places = {i: getattr(theirs, "num_output_placeholders", 0) for i, (_, theirs) in self.twins.items()}
        batch = self.vllm.schedule()
        runs = {request.request_id for request in self.vllm.running}
        self.current_step += 1
        output = SchedulerOutput(self.current_step, dict(batch.num_scheduled_tokens))
        self.outputs[output.step] = batch
        output.num_draft_tokens = {i: len(d) for i, d in batch.scheduled_spec_decode_tokens.items()}
        for i, num_tokens in output.num_scheduled_tokens.items():
            theirs = self.twins[i][1]
            if theirs.num_computed_tokens < theirs.num_tokens + places[i]:
                output.prefill_chunks.add(i)
            if i not in ran:
                output.admitted[i] = theirs.num_computed_tokens - num_tokens
        output.preempted = [i for i in ran if i not in runs]  # a step that preempts admits nobody
        for i in output.preempted:
            self.twins[i][0].num_preemptions += 1
        self._copy_state()
        return output

    def kv_connector_output(self, step: int) -> Any:
        """What the worker of a tier beyond the GPU saw in a step."""
        return None

    def update_from_output(
        self, output: SchedulerOutput, accepted: Mapping[str, int], kv_output: Any = None
    ) -> list[Request]:
        ids = list(output.num_scheduled_tokens)
        sampled = [self._sample(i, output, accepted.get(i, 0)) for i in ids]
        alive = [i for i in ids if i in self.vllm.requests]
        result = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={i: k for k, i in enumerate(ids)},
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
            kv_connector_output=self.kv_connector_output(output.step),
        )
        batch = self.outputs.pop(output.step)
        self.vllm.update_from_output(batch, result)
        num_drafts = batch.num_spec_tokens_to_schedule if self.config.num_speculative_tokens else 0
        if self.config.num_speculative_tokens and not self.config.async_scheduling and ids:
            self.vllm.update_draft_token_ids(DraftTokenIds(ids, [[0] * num_drafts for _ in ids]))
        self._copy_state()
        return [self.twins[i][0] for i in alive if i not in self.vllm.requests]

    def _sample(self, request_id: str, output: SchedulerOutput, num_accepted: int) -> list[int]:
        if request_id in output.prefill_chunks:
            return []
        first = self.twins[request_id][1].num_output_tokens
        return [self.token(f"out:{request_id}", j) for j in range(first, first + 1 + num_accepted)]

    def finish_requests(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self.vllm.finish_requests(request_id, VllmStatus.FINISHED_ABORTED)
        self._copy_state()

    def _copy_state(self) -> None:
        """Let `VLLMReplay` read the counters it reads of the twin's requests."""
        for ours, theirs in self.twins.values():
            ours.num_tokens = theirs.num_tokens
            ours.num_computed_tokens = theirs.num_computed_tokens
            ours.status = {
                VllmStatus.WAITING: RequestStatus.WAITING,
                VllmStatus.RUNNING: RequestStatus.RUNNING,
                VllmStatus.PREEMPTED: RequestStatus.PREEMPTED,
                VllmStatus.WAITING_FOR_REMOTE_KVS: RequestStatus.WAITING_FOR_REMOTE_KVS,
            }.get(theirs.status, RequestStatus.FINISHED_STOPPED)


class OracleReplay(VLLMReplay):
    """A run on vLLM; recycled blocks are counted by its pool."""

    face_kind = VllmFace

    def __init__(self, scenario: VLLMScenario) -> None:
        face: Any = self.face_kind(scenario.engine_config, scenario)
        super().__init__(scenario, face)
        self.manager = face.kv_cache_manager.block_pool


def scenario_of(data: dict[str, Any], is_async: bool) -> VLLMScenario:
    """A scenario under the rules of the vLLM that is here."""
    version = ".".join(map(str, VERSION))
    return VLLMScenario(**data | {"async_scheduling": is_async, "engine_version": version})


def compare(data: dict[str, Any], is_async: bool) -> tuple[int, str]:
    """Run both; return the number of steps, and the first difference or why vLLM refuses the scenario."""
    scenario = scenario_of(data, is_async)
    try:
        theirs = OracleReplay(scenario).run(max_steps=RANDOM_MAX_STEPS).steps
    except ValueError as error:
        return 0, f"vLLM refuses: {str(error).splitlines()[-1][:150]}"
    ours = VLLMReplay(scenario).run(max_steps=RANDOM_MAX_STEPS).steps
    for mine, reference in zip(ours, theirs, strict=False):
        difference = differing(mine, reference)
        if difference:
            return len(theirs), f"DIFFERS at step {reference.step}: {difference}"
    if len(ours) != len(theirs):
        return len(theirs), f"DIFFERS: {len(ours)} steps, vLLM {len(theirs)}"
    return len(theirs), ""


def golden_hash(data: dict[str, Any], is_async: bool) -> str:
    """The first half of the hash over all that vLLM did in a scenario."""
    replay = OracleReplay(scenario_of(data, is_async))
    steps = replay.run(max_steps=RANDOM_MAX_STEPS).steps
    return run_hash(steps)


def write_golden(seeds: Iterable[int], path: Path, kind: str = "all") -> None:
    """Write vLLM's hashes of random scenarios, for tests that run without vLLM."""
    hashes = {}
    for seed in seeds:
        data = SCENARIOS[kind](seed, VERSION)
        if kind == "dspark" and data.get("spec_method") != kind:
            continue
        if kind == "tiered" and "num_speculative_tokens_per_batch_size" not in data:
            continue
        hashes[seed] = [golden_hash(data, is_async) for is_async in (False, True)]
    path.write_text(json.dumps(hashes, indent=0) + "\n")


COLUMNS = ("step", "n_sched", "n_tokens", "n_decode", "used", "free_end", "new_blocks")
COLUMNS += ("evicted", "hit_tokens", "n_waiting", "n_finished")
STATE_COLUMNS = ("recycled", "cached_end", "n_drafts", "n_accepted", "n_aborted")


def golden_row(data: dict[str, Any], is_async: bool) -> dict[str, Any]:
    """What vLLM did in a scenario, in the form of `golden.jsonl.xz`."""
    replay = OracleReplay(scenario_of(data, is_async))
    result = replay.run()
    groups = [f"group{i}" for i in range(len(result.steps[0].group_end))]
    totals = replay._decisions(result)
    return {
        "name": data["name"],
        "mode": "async" if is_async else "sync",
        "vllm_version": vllm.__version__,
        "sched_sha256": result.sched_sha256,
        "state_sha256": result.state_sha256,
        "columns": [*COLUMNS, *STATE_COLUMNS, *groups],
        "rows": [step.row(with_state=True) for step in result.steps],
        "preemptions": [[step.step, step.preempted] for step in result.steps if step.preempted],
        "summary": {key: totals[key] for key in TOTALS},
    }


BRIEF: dict[str, Any] = {"summary": {"steps": 0}}
TOTALS = ("steps", "stuck", "preemptions", "scheduled_tokens", "hit_tokens")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a packed file; none if there is no file."""
    return [json.loads(line) for line in lzma.open(path)] if path.exists() else []


def write_logs(folder: Path) -> None:
    """Write vLLM's logs of all scenarios that it takes, and its hashes of 200 random ones.

    Steps are kept where 0.32 did otherwise, for versions that are held to every feature.
    """
    mirrored = {(row["name"], row["mode"]): row for row in lines_of(HERE / "golden.jsonl.xz")}
    rows, refused = [], 0
    for data in lines_of(HERE / "scenarios.jsonl.xz") + lines_of(folder / "scenarios.jsonl.xz"):
        if VERSION < (0, 32) and any(data.get(key) for key in BEYOND_PLAIN):
            continue
        if VERSION < (0, 12) and data.get("policy") == "priority":
            continue
        if VERSION < (0, 32) and mirrored.get((data["name"], "sync"), BRIEF)["summary"]["steps"] > 1000:
            continue
        for is_async in (False, True):
            try:
                row = golden_row(data, is_async)
            except ValueError as error:
                refused += 1
                print(data["name"], f"refused: {str(error).splitlines()[-1][:150]}")
                continue
            known = mirrored.get((row["name"], row["mode"]), {})
            if VERSION < (0, 32) or row["sched_sha256"] == known.get("sched_sha256"):
                row = {
                    key: value for key, value in row.items() if key not in ("columns", "rows", "preemptions")
                }
            rows.append(row)
    pack(folder / "golden.jsonl.xz", rows)
    write_golden(range(200), folder / "random_golden.json")


def differing(mine: StepRecord, reference: StepRecord) -> dict[str, Any]:
    """Fields of a step that are not the same."""
    ours, theirs = mine.to_json(), reference.to_json()
    return {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}


def main() -> int:
    """Compare and count."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=300, help="scenarios")
    parser.add_argument("--kind", choices=list(SCENARIOS), default="all", help="which scenarios are drawn")
    parser.add_argument("--write", type=Path, help="write vLLM's hashes there instead of comparing")
    parser.add_argument("--logs", type=Path, help="write vLLM's logs of all scenarios into this folder")
    parser.add_argument("--scenario", nargs="*", type=Path, default=[], help="files instead of seeds")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.count)
    if options.write:
        write_golden(seeds, options.write, options.kind)
        return 0
    if options.logs:
        write_logs(options.logs)
        return 0
    cases = [json.loads(path.read_text()) for path in options.scenario]
    cases = cases or (SCENARIOS[options.kind](seed, VERSION) for seed in seeds)
    counts: Counter[str] = Counter()
    for data in cases:
        for is_async in (False, True):
            steps, word = compare(data, is_async)
            counts.update(
                logs=1, steps=steps, refused=word.startswith("vLLM"), differing=word.startswith("DIFF")
            )
            if word:
                print(data.get("name"), "async" if is_async else "sync", word, flush=True)
    print(", ".join(f"{n} {what}" for what, n in counts.items()))
    return 1 if counts["differing"] else 0


if __name__ == "__main__":
    sys.exit(main())
