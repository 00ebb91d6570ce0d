"""The `vllm serve` flags that change memory or scheduling: vLLM's names, vLLM's defaults.

`None` means "the engine decides", and `resolve` decides as it would, by version, GPU, entry point and
model. Knows nothing of memory; block size and KV dtype of a model's layers are `memory.kv`'s to choose.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from kvplan.engines.compilation_config import compilation_text
from kvplan.engines.engram import engram_text
from kvplan.engines.environment import Environment, environment_of, environment_text
from kvplan.engines.eplb import eplb_text
from kvplan.engines.generation import generation_text
from kvplan.engines.kernel_flags import (
    BATCHED_EXCHANGES,
    All2AllBackend,
    DcpExchange,
    GdnPrefill,
    KdaDecode,
    KdaPrefill,
    LinearBackend,
    MambaBackend,
    MoeBackend,
    SsuAlgorithm,
    TopkBackend,
    attention_config,
    attention_text,
    kernel_text,
)
from kvplan.engines.kv_transfer import kv_transfer_text, offloading_gib
from kvplan.engines.mm_limits import mm_limits_text, processor_text, unused_towers
from kvplan.engines.sglang_defaults import FEWEST_REQUESTS
from kvplan.engines.sglang_defaults import defaults as sglang_defaults
from kvplan.engines.speculative_config import Method, speculation, speculation_text, with_own_fields
from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.units import GiB, human_readable_int
from kvplan.models.quantization import checkpoint_kv_dtype, quantization_text
from kvplan.models.spec import AttentionKind, ModelSpec

Engine = Literal["vllm", "sglang", "tensorrt-llm"]
EntryPoint = Literal["serve", "llm"]

LATEST = {"vllm": (0, 32), "sglang": (0, 5), "tensorrt-llm": (1, 0)}
"""The version mirrored when none is asked for."""
NEWEST = LATEST | {"vllm": (0, 33)}
"""The last version whose rules were looked at; later ones are planned by these."""


def as_count(value: Any) -> Any:
    """Counts may be written as vLLM takes them: 32k, 32K, 1g."""
    return human_readable_int(value) if isinstance(value, str) else value


def as_length(value: Any) -> Any:
    """A count, or `auto` as vLLM writes -1, the longest that fits."""
    return -1 if isinstance(value, str) and value.strip().lower() == "auto" else as_count(value)


def as_backend(value: Any) -> Any:
    """A backend's name in capitals, as vLLM looks it up (`AttentionBackendEnum[name.upper()]`)."""
    return value.upper() if isinstance(value, str) else value


def as_none(value: Any) -> Any:
    """The words for no number: vLLM's "None" and "" (`engine/arg_utils.py: optional_type`), and none in any case."""
    return None if isinstance(value, str) and value.strip().lower() in ("", "none") else value


Number = TypeVar("Number", int, float)
Maybe = Annotated[Number | None, BeforeValidator(as_none)]
"""A number, or none of one's own: the engine decides, or what the field says."""
Degree = Annotated[int, Field(ge=1, le=4096)]
Count = Annotated[int, BeforeValidator(as_count), Field(ge=1, le=1 << 40)]
Queued = Annotated[int, BeforeValidator(as_count), Field(ge=0, le=1 << 40)]
Names = tuple[str, ...]
Length = Annotated[int, BeforeValidator(as_length), Field(ge=-1, le=1 << 32)]


class EngineArgs(Config):
    """Flags of `vllm serve`, spelled with underscores; the CLI and scenario files are generated from this class."""

    tensor_parallel_size: Degree = 1
    """Number of tensor-parallel ranks (-tp)."""
    pipeline_parallel_size: Degree = 1
    """Number of pipeline stages (-pp)."""
    data_parallel_size: Degree = 1
    """Number of data-parallel replicas (-dp); with MoE models they run in lockstep."""
    decode_context_parallel_size: Degree = 1
    """Ranks that split the tokens of MLA or replicated KV between them (-dcp)."""
    prefill_context_parallel_size: Degree = 1
    """Ranks on top of all others that split prompts between them (-pcp), each with the whole KV; MLA alone."""
    dcp_q_replicate: bool | None = None
    """With latent attention, each of those ranks projects the queries of all; None = as vLLM does for the model."""
    enable_batch_sharded_sampling: bool | None = None
    """Each tensor-parallel rank samples its share of the requests, where the model's class can."""
    enable_hc_sp: bool = False
    """Qwen4Exp: tensor-parallel ranks split the tokens where residual streams mix; timed and counted as without."""
    api_server_count: Maybe[Degree] = None
    """API server processes before all data-parallel replicas (-asc); None = as many as those."""
    enable_expert_parallel: bool = False
    """Shard experts instead of splitting each one."""
    enable_eplb: bool = False
    """Balance experts over ranks by their load."""
    eplb_config: Annotated[str | None, BeforeValidator(eplb_text)] = None
    """How, as vLLM's JSON: num_redundant_experts of a layer that are there twice, window_size steps remembered."""
    max_model_len: Maybe[Length] = None
    """Longest sequence (prompt + output); None = the model's own, -1 = the longest that fits."""
    max_num_seqs: Maybe[Count] = None
    """Most sequences in one step."""
    max_num_active_seqs: Maybe[Count] = None
    """Most sequences that are admitted, while memory and graphs are for max_num_seqs; None = as many as those."""
    max_num_batched_tokens: Maybe[Count] = None
    """Most tokens in one step."""
    max_num_scheduled_tokens: Maybe[Count] = None
    """Most of them that are given out, while memory is for all of them; None = as many as those."""
    max_num_queued_reqs: Maybe[Queued] = None
    """Requests waiting or running, on all data-parallel replicas, from which on API servers refuse more (HTTP 503)."""
    max_num_queued_tokens: Maybe[Queued] = None
    """Prompt tokens of an API server's requests without a first token from which on it refuses more (HTTP 503)."""
    performance_mode: Literal["balanced", "interactivity", "throughput"] = "balanced"
    """throughput doubles vLLM's defaults of these two; interactivity captures every batch up to 32 as a CUDA graph."""
    gpu_memory_utilization: Maybe[float] = None
    """Share of the card's total memory the engine may fill; 0.92 (0.9 before vLLM 0.20)."""
    kv_cache_memory_bytes: Maybe[Count] = None
    """Size of the KV pool per GPU; overrides gpu_memory_utilization."""
    num_gpu_blocks_override: Maybe[Count] = None
    """Number of KV blocks, null block included; overrides everything."""
    block_size: Maybe[Annotated[int, Field(ge=1, le=1 << 20)]] = None
    """Tokens per KV block."""
    kv_cache_dtype: str = "auto"
    """auto, bfloat16, fp8, fp8_e4m3, fp8_e5m2, fp8_per_token_head, int8_per_token_head, nvfp4, fp8_ds_mla ..."""
    kv_cache_dtype_skip_layers: tuple[str, ...] = ()
    """Layers that keep the model's dtype: layer numbers, or sliding_window."""
    attention_backend: Annotated[str | None, BeforeValidator(as_backend)] = None
    """Attention kernels, e.g. FLASH_ATTN or FLASHINFER; None = the best the GPU and the KV dtype allow."""
    enable_prefix_caching: bool | None = None
    """Reuse full blocks of earlier prompts."""
    prefix_match_unit: Maybe[Count] = None
    """Tokens between two places where a hit of a hybrid may end; None = what the groups' blocks have in common."""
    prefix_cache_retention_interval: Maybe[Annotated[int, Field(ge=0, le=10**9)]] = 0
    """Where windows and states keep hits: every so many tokens; 0 = at a prompt's end, None = everywhere."""
    enable_chunked_prefill: bool | None = None
    """Split long prompts over several steps."""
    async_scheduling: bool | None = None
    """Schedule step k+1 while step k runs."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """Order of the waiting queue."""
    long_prefill_token_threshold: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Cap on one prompt's tokens in a step while others wait or run; 0 = none."""
    long_prefill_token_threshold_adaptive: bool = False
    """Let that cap be no less than the requests' even share of max_num_batched_tokens."""
    scheduler_reserve_full_isl: bool = True
    """Admit a prompt only if all of it fits now."""
    prefill_schedule_interval: Annotated[int, Field(ge=1, le=10**9)] = 1
    """Steps from one with prompt tokens to the next while requests decode; from vLLM 0.33 on."""
    watermark: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of blocks kept free when admitting."""
    stream_interval: Annotated[int, Field(ge=1, le=10**9)] = 1
    """Tokens of a stream that leave together, behind the first; what clients see and what sending costs."""
    kv_offloading_size: Maybe[Annotated[float, Field(gt=0, le=1e6)]] = None
    """GiB of host memory for KV that leaves the GPU, all ranks of an engine together; None = no such tier."""
    kv_offloading_backend: Literal["native", "lmcache"] = "native"
    """Who keeps that tier: native, vLLM itself; lmcache, an outside server (not planned)."""
    kv_transfer_config: Annotated[str | None, BeforeValidator(kv_transfer_text)] = None
    """A KV connector as vLLM's JSON: OffloadingConnector's bytes, chunks and tiers below host memory; no other one."""
    offload_backend: Literal["auto", "uva", "prefetch"] = "auto"
    """How weights lie in host memory: uva, read from there; prefetch, copied ahead; auto, as the others say."""
    cpu_offload_gb: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """GiB of weights in host memory, per GPU, read over the link in every step."""
    cpu_offload_params: Names = ()
    """Segments of names of weights that --cpu-offload-gb may take, e.g. experts; none: all."""
    offload_group_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Layers of a group whose last ones lie in host memory; 0 = none."""
    offload_num_in_group: Annotated[int, Field(ge=1, le=4096)] = 1
    """Layers of each group in host memory."""
    offload_prefetch_step: Annotated[int, Field(ge=0, le=4096)] = 1
    """Layers copied ahead, each into buffers of its own on the GPU."""
    offload_params: Names = ()
    """Segments of names of weights that --offload-group-size may take; none: all of its layers."""
    disable_hybrid_kv_cache_manager: bool = False
    """Treat sliding and chunked layers as full attention."""
    kv_sharing_fast_prefill: bool = False
    """Gemma 3n, Gemma 4: layers that read others' KV run on the last token of each prompt's chunk alone."""
    swa_bounded_replay: bool = True
    """DeepSeek V4.1: windows stay out of prefix caching, a hit's last window is computed again."""
    mamba_cache_dtype: str = "auto"
    """Dtype of the convolution state."""
    mamba_ssm_cache_dtype: str = "auto"
    """Dtype of the recurrent state."""
    mamba_block_size: Maybe[Annotated[int, Field(ge=8, le=10**9, multiple_of=8)]] = None
    """Tokens between two kept states, with prefix caching only; beside attention the attention's block size wins."""
    enable_mamba_shared_prefix_checkpoint: bool = False
    """With EAGLE or MTP and a prefix_match_unit below the states' blocks: keep a state where prompts part too."""
    mamba_cache_mode: Literal["align", "none"] | None = None
    """Which states stay; vLLM itself takes align with prefix caching and none without, whatever is asked."""
    engram_config: Annotated[str | None, BeforeValidator(engram_text)] = None
    """Where tables of n-grams lie, as vLLM's JSON: {"cpu_offload": false}, on the GPUs."""
    use_replayssm: bool = False
    """Nemotron-H: keep recent inputs beside each state and write the state only every so many tokens."""
    replayssm_buffer_len: Annotated[int, Field(ge=1, le=1 << 20)] = 16
    """Tokens whose inputs are kept."""
    num_speculative_tokens: Annotated[int, Field(ge=0, le=64)] = 0
    """Draft tokens per decode step."""
    speculative_method: Method = "mtp"
    """Who drafts."""
    speculative_config: Annotated[str | None, BeforeValidator(speculation_text)] = None
    """What else there is to say of drafting, as vLLM's JSON: {"quantization": "fp8", "draft_sample_method":
    "probabilistic"}; method and tokens may stand in it."""
    quantization: str | None = None
    """Quantise on load (e.g. fp8); None = as the checkpoint says."""
    quantization_config: Annotated[str | None, BeforeValidator(quantization_text)] = None
    """What of it, as vLLM's JSON: {"moe": "fp8_per_block", "ignore": ["re:.*shared_expert.*"]}, or by targets."""
    dtype: str = "auto"
    """Weights and activations: auto, bfloat16, float16, float32."""
    enforce_eager: bool = False
    """No CUDA graphs."""
    optimization_level: Annotated[int, Field(ge=0, le=3)] = 2
    """0: no CUDA graphs, no compilation (-O0); 1: graphs in pieces alone; 2 and 3: decodes as one graph too."""
    compilation_config: Annotated[str | None, BeforeValidator(compilation_text)] = None
    """vLLM's JSON of torch.compile and CUDA graphs (-cc): cudagraph_mode, cudagraph_capture_sizes, mode ..."""
    cudagraph_capture_sizes: tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...] = ()
    """Batches, in tokens, that are captured as CUDA graphs; none = vLLM's staircase."""
    max_cudagraph_capture_size: Maybe[Annotated[int, Field(ge=0, le=1 << 20)]] = None
    """Largest batch captured; None = twice the widest decode batch, at most 512 (1,024 on B200 and its like)."""
    generation_config: str = "auto"
    """Where requests get sampling parameters that they leave out: auto or a folder, the checkpoint's (often top-k and
    top-p, which cost time per sequence); vllm, none."""
    override_generation_config: Annotated[str | None, BeforeValidator(generation_text)] = None
    """The same as JSON, before those: {"top_k": 20} samples with top-k, {"top_k": -1, "top_p": 1} with neither."""
    language_model_only: bool = False
    """Leave out the vision or audio tower of a multimodal model."""
    limit_mm_per_prompt: Annotated[str | None, BeforeValidator(mm_limits_text)] = None
    """Items a prompt may have, as vLLM's JSON: {"image": 4, "video": 0}; start-up profiles no kind that has 0, and
    loads no tower whose kinds all have 0."""
    mm_processor_kwargs: Annotated[str | None, BeforeValidator(processor_text)] = None
    """What the processor of images and videos is told, as vLLM's JSON: {"max_pixels": 1003520}; acts on Qwen's and
    InternVL's towers."""
    media_io_kwargs: Annotated[str | None, BeforeValidator(processor_text)] = None
    """How media are read, as vLLM's JSON: {"video": {"num_frames": 32}}; start-up heeds it for Nemotron's towers
    alone."""
    skip_mm_profiling: bool = False
    """Start without running the tower on the largest images, so without memory for that."""
    mm_encoder_tp_mode: Literal["weights", "data"] = "weights"
    """weights: the tower is cut like the model; data: each rank holds it whole and runs its own images."""
    mm_ipc_gpu_memory_gb: Annotated[float, Field(ge=0, le=1e5)] = 0.0
    """GiB of each GPU kept from the KV pool for videos that API servers decode there."""
    enable_return_routed_experts: bool = False
    """Tell which experts every token visited; needs a mixture of experts and prefix caching."""
    enable_lora: bool = False
    """Serve LoRA adapters."""
    max_loras: Annotated[int, Field(ge=1, le=4096)] = 1
    """Adapters in one batch: memory for so many is taken at start-up."""
    max_lora_rank: Annotated[Literal[1, 8, 16, 32, 64, 128, 256, 320, 512], BeforeValidator(as_count)] = 16
    """Rank that every adapter's memory is taken for."""
    fully_sharded_loras: bool = False
    """Cut over ranks what of adapters is otherwise whole on each."""
    lora_dtype: Literal["auto", "float16", "bfloat16"] = "auto"
    """Of adapters; auto: the model's."""
    lora_target_modules: Names = ()
    """Modules that adapters may change, by the end of their names; none: all."""
    enable_moe_shared_loras: bool = False
    """Adapters of experts share what lies before and behind all of a layer's."""
    enable_mixed_moe_lora_format: bool = False
    """Adapters of experts of both formats: gate and up have an A each."""
    enable_tower_connector_lora: bool = False
    """Adapters of the tower too, where its class allows them."""
    specialize_active_lora: bool = False
    """CUDA graphs for each power of two of active adapters."""
    all2all_backend: All2AllBackend = "allgather_reducescatter"
    """How experts' ranks exchange tokens with data parallelism; changes buffers and CUDA graphs."""
    enable_dbo: bool = False
    """Two micro-batches: one computes while the other's tokens are exchanged between experts' ranks."""
    ubatch_size: Annotated[int, Field(ge=0, le=64)] = 0
    """Micro-batches of a step instead of these two; 0 and 1 = whole steps."""
    dbo_decode_token_threshold: Annotated[int, Field(ge=0, le=10**9)] = 32
    """Tokens from which on steps of decodes alone are split into micro-batches."""
    dbo_prefill_token_threshold: Annotated[int, Field(ge=0, le=10**9)] = 512
    """Tokens from which on other steps are."""
    disable_custom_all_reduce: bool = False
    """Tensor-parallel sums by NCCL alone."""
    dcp_comm_backend: DcpExchange = None
    """How ranks that share a sequence exchange: ag_rs or a2a; None = ag_rs. Timed as ag_rs."""
    attention_config: Annotated[str | None, BeforeValidator(attention_text)] = None
    """vLLM's JSON of attention (-ac): backend, flash_attn_version, indexer_kv_dtype ..."""
    kernel_config: Annotated[str | None, BeforeValidator(kernel_text)] = None
    """vLLM's JSON of kernels: moe_backend, linear_backend ..."""
    moe_backend: MoeBackend = "auto"
    """Kernels of experts; others than vLLM's own choice are timed as that, in a wider range."""
    linear_backend: LinearBackend = "auto"
    """Kernels of quantised products; so too."""
    mamba_backend: MambaBackend = "triton"
    """Kernels that update Mamba's states; so too."""
    mamba_ssu_algorithm: SsuAlgorithm = None
    """FlashInfer's algorithm for them."""
    gdn_prefill_backend: GdnPrefill = None
    """Kernels of a gated delta net's prompts; FlashInfer's keep states per block from vLLM 0.33 on."""
    kda_prefill_backend: KdaPrefill = None
    """Kernels of KDA's prompts; flashkda keeps states per block, triton does not."""
    kda_decode_backend: KdaDecode = None
    """Kernels of KDA's decodes."""
    sparse_indexer_topk_backend: TopkBackend = "auto"
    """Kernels that choose a sparse attention's tokens."""
    env: Annotated[str | None, BeforeValidator(environment_text)] = None
    """vLLM's environment variables that act on the plan, NAME=VALUE parted by spaces: VLLM_PP_LAYER_PARTITION=30,34."""

    @property
    def num_micro_batches(self) -> int:
        """Parts that long steps are split into, which overlap; 1: none (vLLM's `num_ubatches`)."""
        return 2 if self.enable_dbo else max(1, self.ubatch_size)

    @property
    def environment(self) -> Environment:
        """`env`, read."""
        return environment_of(self.env)

    @model_validator(mode="before")
    @classmethod
    def _drafts_apart(cls, values: Any) -> Any:
        return with_own_fields(values)


class ResolvedArgs(EngineArgs):
    """EngineArgs after the engine has decided: what it would run with."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    enable_prefix_caching: bool
    enable_chunked_prefill: bool
    async_scheduling: bool

    @property
    def max_num_active_reqs(self) -> int:
        """Most sequences that run at once (vLLM's scheduler: same name)."""
        return self.max_num_active_seqs or self.max_num_seqs

    @property
    def token_budget(self) -> int:
        """Most tokens that the requests of a step get."""
        return min(self.max_num_scheduled_tokens or self.max_num_batched_tokens, self.max_num_batched_tokens)

    @property
    def num_gpus(self) -> int:
        """GPUs of all replicas."""
        ranks = self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size
        return ranks * self.prefill_context_parallel_size


class EngineVersion(NamedTuple):
    """Which engine, and how old: defaults and overheads follow it."""

    engine: Engine = "vllm"
    version: tuple[int, int] = LATEST["vllm"]
    legacy: bool = False
    """vLLM's first engine (V0): all before 0.8, and later on cards it was kept for."""
    patch: int | None = None
    """Third number of the version, where one was given; None: the last of its series."""

    def is_vllm(self, *since: int) -> bool:
        """Whether this is vLLM of at least that version; no other engine's numbers are compared with vLLM's."""
        return self.engine == "vllm" and self.version >= since

    def is_between(self, engine: str, since: tuple[int, int], until: tuple[int, int] | None) -> bool:
        """Whether this is `engine` from `since` on and before `until`; None: no end."""
        return self.engine == engine and since <= self.version and (until is None or self.version < until)

    def __str__(self) -> str:
        """As `--engine` takes it, e.g. vllm@0.32."""
        kept = "-v0" if self.legacy and self.version >= (0, 8) else ""
        return f"{self.engine}@{self.version[0]}.{self.version[1]}{kept}"


def beyond_known(engine: EngineVersion) -> str:
    """Which version's rules stand in for one that is newer than all known; "" for known ones.

    >>> beyond_known(parse_engine("vllm@9.9")), beyond_known(parse_engine("vllm@0.19"))
    ('vllm@0.33', '')
    """
    newest = NEWEST[engine.engine]
    return f"{engine.engine}@{newest[0]}.{newest[1]}" if engine.version > newest else ""


SPELLINGS = {
    "vllm": "vllm",
    "sglang": "sglang",
    **dict.fromkeys(("tensorrt-llm", "tensorrt_llm", "tensorrtllm", "trtllm", "trt-llm"), "tensorrt-llm"),
}
"""How engines are written, in any case -> their name."""


def parse_engine(text: str) -> EngineVersion:
    """Read `vllm`, `vllm@0.19`, `vllm@0.9.2-v0`, `sglang`, `tensorrt-llm`.

    >>> parse_engine("vllm@0.19").version
    (0, 19)
    """
    name, at, version = text.partition("@")
    name = SPELLINGS.get(name.casefold(), name)
    if name not in LATEST:
        raise KvplanError(
            f"unknown engine {text!r}; there are {', '.join(LATEST)}, each with an optional @version"
        )
    if not at:
        return EngineVersion(name, LATEST[name])  # type: ignore[arg-type]
    number, _, kind = version.removeprefix("v").partition("-")
    parts = number.split(".")
    if len(parts) < 2 or not all(p.isdigit() and len(p) < 5 for p in parts[:2]) or kind not in ("", "v0"):
        raise KvplanError(f"{version!r} is not a version of {name}; write e.g. {name}@0.19")
    numbers = (int(parts[0]), int(parts[1]))
    patch = int(digits[0]) if len(parts) > 2 and (digits := re.match(r"\d{1,4}", parts[2])) else None
    legacy = kind == "v0" or (name == "vllm" and numbers < (0, 8))
    return EngineVersion(name, numbers, legacy, patch)  # type: ignore[arg-type]


def as_read_by(engine: EngineVersion, model: ModelSpec) -> ModelSpec:
    """The model with the longest context that this engine's version reads from its config, and its rotary tables."""
    if engine.engine != "vllm" or engine.is_vllm(0, 32):
        return model
    rotary = model.rotary_until_0_31 or model.rotary
    longest = (
        model.max_model_len if engine.is_vllm(0, 30) else model.yarn_max_model_len or model.max_model_len
    )
    if (rotary, longest) == (model.rotary, model.max_model_len):
        return model
    return replace(model, max_model_len=longest, rotary=rotary)


def resolve(
    args: EngineArgs,
    model: ModelSpec,
    gpu: GpuSpec,
    engine: EngineVersion | str = EngineVersion(),  # noqa: B008 (a tuple)
    entry_point: EntryPoint = "serve",
) -> ResolvedArgs:
    """Fill in what the engine would decide, and refuse batches, lengths and shares that it refuses.

    `max_model_len` -1 stays: only a memory plan can say what it becomes. Parallel sizes that do not divide are
    refused by `memory.kv.checks.check_sharding`. Source: vLLM 0.32
    `engine/arg_utils.py`, `config/scheduler.py`, `config/model.py`; older rules from its release history.
    Raises KvplanError (a ValueError, as vLLM's) with the flag to turn.
    """
    version = parse_engine(engine) if isinstance(engine, str) else engine
    utilization = _utilization(args, version)
    max_model_len = _max_model_len(args, model)
    chunked = _chunked_prefill(args, model, version, max_model_len)
    tokens, seqs = _batch(args, gpu, version, entry_point, max_model_len, chunked)
    if model.canvas_length and seqs >= CANVASES[0]:
        seqs = CANVASES[1]
    length = max_model_len if max_model_len > 0 else model.default_max_model_len
    _check_items(model, tokens)
    if version.engine != "sglang":  # whose chunk bounds a prefill, not a step
        _check_batch(args, tokens, seqs, length, chunked)
    _check_dtype(args, gpu)
    _check_fast_prefill(args, version)
    attention_backend = _attention_backend(args)
    prefix_caching = _prefix_caching(args, model, version)
    _check_states(args, model, version, length, prefix_caching, chunked)
    return ResolvedArgs(
        **args.model_dump()
        | {
            "max_model_len": max_model_len,
            "max_num_seqs": seqs,
            "max_num_batched_tokens": tokens,
            "gpu_memory_utilization": utilization,
            "enable_prefix_caching": prefix_caching,
            "enable_chunked_prefill": chunked,
            "async_scheduling": _async(args, version),
            "attention_backend": attention_backend,
            "kv_offloading_size": offloading_gib(args.kv_offloading_size, args.kv_transfer_config),
            "kv_cache_dtype": _kv_cache_dtype(args, model, version),
            "mamba_cache_mode": _mamba_cache_mode(args, model, version, prefix_caching),
            "language_model_only": args.language_model_only or _no_items(args, model, version),
        }
    )


def _kv_cache_dtype(args: EngineArgs, model: ModelSpec, version: EngineVersion) -> str:
    """auto takes what a quantised checkpoint asks for, from vLLM 0.12 on."""
    if args.kv_cache_dtype != "auto" or not version.is_vllm(0, 12):
        return args.kv_cache_dtype
    return checkpoint_kv_dtype(model.quantization or {})


def _attention_backend(args: EngineArgs) -> str | None:
    """The flag's, or --attention-config's; the engine's choice for names of MiniMax M3's sparse kernels alone."""
    inside = attention_config(args.attention_config).backend
    if inside and args.attention_backend:
        raise KvplanError(
            "--attention-backend and backend of --attention-config: vLLM refuses both; state one"
        )
    backend = args.attention_backend or inside
    return None if backend in ("AUTO", "CUTLASS_MSA", "TRITON_MSA") else backend


def _no_items(args: EngineArgs, model: ModelSpec, version: EngineVersion) -> bool:
    """Whether limits of items leave the model text alone: of all that its towers are for, a prompt may have none."""
    if version.engine != "vllm" or model.vision is None or not args.limit_mm_per_prompt:
        return False
    towers = model.vision.towers
    return len(unused_towers(args.limit_mm_per_prompt, towers)) == len(towers)


def _utilization(args: EngineArgs, version: EngineVersion) -> float:
    if args.gpu_memory_utilization is None:
        return _default_utilization(version)
    if not 0 < args.gpu_memory_utilization <= 1:
        raise KvplanError(
            f"--gpu-memory-utilization {args.gpu_memory_utilization:g}: a share of the card's memory, in (0, 1]"
        )
    return args.gpu_memory_utilization


def _default_utilization(version: EngineVersion) -> float:
    """0.92 came with CUDA graphs inside the budget (0.20); SGLang's is `sglang_defaults`'."""
    if version.engine == "vllm":
        return 0.92 if version.is_vllm(0, 20) else 0.9
    return 0.9 if version.engine == "tensorrt-llm" else 0.88


def _max_model_len(args: EngineArgs, model: ModelSpec) -> int:
    asked = args.max_model_len
    if asked is None or asked == -1:
        return asked or model.default_max_model_len
    if asked == 0:
        raise KvplanError("--max-model-len 0: a length in tokens, or -1 for the longest that fits")
    allowed = args.environment.allow_long_max_model_len
    if asked > model.max_model_len and model.max_model_len_stated and not allowed:
        raise KvplanError(
            f"--max-model-len {asked:,}: {model.name} is made for {model.max_model_len:,}; {_longer(model, asked)}"
        )
    return asked


def _longer(model: ModelSpec, asked: int) -> str:
    """What a longer context needs."""
    if asked <= model.yarn_max_model_len:
        scaled = model.yarn_max_model_len
        return f"its YaRN scaling reaches {scaled:,} once config.json says max_position_embeddings {scaled}"
    return "a longer context needs rope scaling in its config.json"


def _chunked_prefill(args: EngineArgs, model: ModelSpec, version: EngineVersion, max_model_len: int) -> bool:
    """V1 always splits prompts; V0 did so for contexts beyond 32k; encoder-decoders' never, whatever is asked."""
    if model.encoded_tokens:
        return False
    if args.enable_chunked_prefill is not None:
        return args.enable_chunked_prefill
    return not version.legacy or max_model_len > 32 * 1024


def _prefix_caching(args: EngineArgs, model: ModelSpec, version: EngineVersion) -> bool:
    """On, except for V0, models without attention, hybrids of vLLM before 0.21, and encoder-decoders."""
    if model.encoded_tokens:
        return False
    if args.enable_prefix_caching is not None:
        return args.enable_prefix_caching
    kinds = {mixer.kind for layer in model.layers for mixer in layer.mixers} - {AttentionKind.NONE}
    if version.legacy or kinds == {AttentionKind.STATE}:
        return False
    return not model.is_hybrid or version.engine != "vllm" or version.is_vllm(0, 21)


def _mamba_cache_mode(
    args: EngineArgs, model: ModelSpec, version: EngineVersion, caching: bool
) -> str | None:
    """As prefix caching says, whatever is asked (vLLM 0.32 `model_executor/models/config.py: MambaModelConfig`)."""
    if version.engine != "vllm" or not model.is_hybrid:
        return args.mamba_cache_mode
    return "align" if caching else "none"


def _check_states(
    args: EngineArgs, model: ModelSpec, version: EngineVersion, length: int, caching: bool, chunked: bool
) -> None:
    """What vLLM refuses of states; source: `config/vllm.py: validate_mamba_block_size`, `MambaModelConfig`."""
    if args.mamba_block_size not in (None, length) and not caching:
        raise KvplanError(
            f"--mamba-block-size {args.mamba_block_size}: only with prefix caching, which is off; "
            "add --enable-prefix-caching or leave it out"
        )
    if version.engine == "vllm" and model.is_hybrid and caching and not chunked:
        raise KvplanError(
            f"--no-enable-chunked-prefill: {model.name} caches its states at the ends of chunks; "
            "add --no-enable-prefix-caching"
        )


def _async(args: EngineArgs, version: EngineVersion) -> bool:
    """On by default since 0.14, where the drafter allows it."""
    drafts, method = args.num_speculative_tokens > 0, args.speculative_method
    unpadded = drafts and speculation(args.speculative_config).disable_padded_drafter_batch
    waits = drafts and method in ON_THE_HOST
    if args.async_scheduling and (waits or unpadded) and version.is_vllm(0, 14):
        what = "disable_padded_drafter_batch" if unpadded else f"speculative method {method}"
        raise KvplanError(f"--async-scheduling does not go with {what}; leave it out")
    if args.async_scheduling is not None:
        return args.async_scheduling
    first_runner = args.num_micro_batches > 1 and not args.environment.use_v2_model_runner
    in_parts = first_runner and args.pipeline_parallel_size > 1
    return version.is_vllm(0, 14) and not waits and not unpadded and not in_parts


ON_THE_HOST = ("ngram", "suffix", "medusa", "custom_class")
"""Methods that draft from what a step has given, so no step is scheduled before (vLLM 0.32 `config/vllm.py`)."""


def _batch(
    args: EngineArgs,
    gpu: GpuSpec,
    version: EngineVersion,
    entry_point: EntryPoint,
    max_model_len: int,
    chunked: bool,
) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs)."""
    tokens, seqs = _batch_defaults(gpu, version, entry_point, chunked)
    if version.engine == "vllm" and args.performance_mode == "throughput":
        tokens, seqs = 2 * tokens, 2 * seqs
    if version.is_vllm(0, 11) and holds_tokens_of_all(args):
        tokens = BATCHED_TOKENS * (1 + (args.performance_mode == "throughput"))
    if not chunked:
        tokens = max(tokens, max_model_len)
    seqs = args.max_num_seqs or seqs
    if max_model_len > 0:
        tokens = min(tokens, seqs * max_model_len)
    tokens = args.max_num_batched_tokens or tokens
    if version.engine == "sglang":
        return tokens, seqs
    return tokens, args.max_num_seqs or min(seqs, tokens)


BATCHED_TOKENS = 256
"""max_num_batched_tokens where the buffers between experts' ranks hold each token for every expert, unless stated (vLLM
0.32 `config/scheduler.py: DEFAULT_MAX_NUM_BATCHED_TOKENS_FOR_BATCHED_DP`)."""


def holds_tokens_of_all(args: EngineArgs) -> bool:
    """Whether experts' ranks exchange by such buffers (`use_batched_dp_moe`)."""
    spread = args.enable_expert_parallel and args.data_parallel_size > 1
    return spread and args.all2all_backend in BATCHED_EXCHANGES


def _batch_defaults(
    gpu: GpuSpec, version: EngineVersion, entry_point: EntryPoint, chunked: bool
) -> tuple[int, int]:
    offline = entry_point == "llm"
    if version.engine == "sglang":
        return sglang_defaults(gpu.reported_mib).chunked_prefill_size, FEWEST_REQUESTS
    if version.engine == "tensorrt-llm":
        return 8192, 2048
    if version.legacy:
        return 2048, 256
    if gpu.total_bytes >= 160 * GiB and version.is_vllm(0, 20):
        return 16384, 1024
    if gpu.total_bytes >= 70 * GiB and "a100" not in gpu.name:
        return (16384 if offline else 8192), 1024
    return (8192 if offline else 2048), 256


def _check_batch(args: EngineArgs, tokens: int, seqs: int, length: int, chunked: bool) -> None:
    if not chunked and tokens < length:
        raise KvplanError(
            f"--max-num-batched-tokens {tokens:,} is less than max_model_len {length:,}, "
            "which needs chunked prefill; raise one or lower the other"
        )
    if tokens < seqs:
        raise KvplanError(f"--max-num-batched-tokens {tokens:,} must be at least --max-num-seqs {seqs:,}")
    if (active := args.max_num_active_seqs or 0) > seqs:
        raise KvplanError(f"--max-num-active-seqs {active:,} must be at most --max-num-seqs {seqs:,}")
    if not chunked and (given := args.max_num_scheduled_tokens or length) < length:
        raise KvplanError(
            f"--max-num-scheduled-tokens {given:,} is less than max_model_len {length:,}: without chunked prefill a "
            "prompt of that length never runs"
        )
    if args.long_prefill_token_threshold > length:
        raise KvplanError(f"--long-prefill-token-threshold must not exceed max_model_len {length:,}")


CANVASES = 128, 8
"""From how many requests on vLLM takes a number for no choice of the user's where models fill canvases, and how many
run at once then: sampling holds every canvas' logits (vLLM 0.32 `model_executor/models/config.py`)."""


def _check_items(model: ModelSpec, tokens: int) -> None:
    """An encoder's output is not split over steps (vLLM 0.32 `v1/core/encoder_cache_manager.py`)."""
    if tokens < model.encoded_tokens:
        raise KvplanError(
            f"--max-num-batched-tokens {tokens:,}: {model.name}'s encoder makes {model.encoded_tokens:,} of an item, "
            "in one step; raise it"
        )


def _check_fast_prefill(args: EngineArgs, version: EngineVersion) -> None:
    """A drafter that reads hidden states needs all of a prompt's (vLLM 0.32 `config/vllm.py`)."""
    own = args.num_speculative_tokens and args.speculative_method not in ("ngram", "draft_model")
    if version.engine == "vllm" and args.kv_sharing_fast_prefill and own:
        raise KvplanError(
            f"--kv-sharing-fast-prefill: not beside {args.speculative_method}, which drafts from hidden states of all "
            "prompt tokens"
        )


def _check_dtype(args: EngineArgs, gpu: GpuSpec) -> None:
    """bfloat16 needs compute capability 8.0; left to `auto`, the engine takes float16 there."""
    if args.dtype == "bfloat16" and gpu.compute_capability < 8:
        raise KvplanError(
            f"--dtype bfloat16: {gpu.name} has no bfloat16 (compute capability below 8.0); try float16"
        )
