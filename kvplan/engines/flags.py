"""The `vllm serve` flags that change memory or scheduling: vLLM's names, vLLM's defaults.

`None` means "the engine decides": `engines.resolve` decides as it would. Knows nothing of memory; block size and KV
dtype of a model's layers are `memory.kv`'s to choose.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from kvplan.engines.compilation_config import compilation_text
from kvplan.engines.ec_transfer import ec_transfer_text
from kvplan.engines.engram import engram_text
from kvplan.engines.environment import Environment, environment_of, environment_text
from kvplan.engines.eplb import eplb_text
from kvplan.engines.generation import generation_text
from kvplan.engines.kernel_flags import (
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
    attention_text,
    kernel_text,
)
from kvplan.engines.kv_transfer import kv_transfer_text
from kvplan.engines.mm_limits import mm_limits_text, processor_text
from kvplan.engines.pooler_config import Convert, Runner, pooler_text
from kvplan.engines.sampling_config import priority_text, watermark_text
from kvplan.engines.speculative_config import Method, speculation_text, with_own_fields
from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import human_readable_int
from kvplan.models.quantization import quantization_name, quantization_text

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


def as_kernels(value: Any) -> Any:
    """A backend's name, or none of one's own."""
    return as_backend(as_none(value))


def as_none(value: Any) -> Any:
    """The words for no number: vLLM's "None" and "" (`engine/arg_utils.py: optional_type`), and none in any case."""
    return None if isinstance(value, str) and value.strip().lower() in ("", "none") else value


Number = TypeVar("Number", int, float)
Maybe = Annotated[Number | None, BeforeValidator(as_none)]
"""A number, or none of one's own: the engine decides, or what the field says."""
Degree = Annotated[int, Field(ge=1, le=4096)]
Rank = Annotated[int, Field(ge=0, le=4095)]
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
    renderer_num_workers: Annotated[int, Field(ge=1, le=4096)] = 1
    """Threads of each that make prompts tokens; at the slow end of times they gain nothing."""
    mm_processor_cache_gb: float = Field(4.0, ge=0, le=1 << 20)
    """GiB of host memory of each API server and engine for items made ready; what pools takes one of the two."""
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
    disable_sliding_window: bool = False
    """Serve windowed layers as full attention, and no context beyond the window."""
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
    quantization: Annotated[str | None, BeforeValidator(quantization_name)] = None
    """Quantise on load (e.g. fp8); None = as the checkpoint says."""
    quantization_config: Annotated[str | None, BeforeValidator(quantization_text)] = None
    """What of it, as vLLM's JSON: {"moe": "fp8_per_block", "ignore": ["re:.*shared_expert.*"]}, or by targets."""
    model_impl: Literal["auto", "vllm", "transformers", "terratorch"] = "auto"
    """Whose class runs the model: transformers, for text models that hold the same by it; timed as vLLM's own."""
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
    """Largest batch captured; None = twice the widest decode batch, at most 512 (B200 and B300, since 0.28: 1,024)."""
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
    """What the processor of images and videos is told, as vLLM's JSON: {"max_pixels": 1003520}; which keys act on
    which tower: docs/support.md."""
    media_io_kwargs: Annotated[str | None, BeforeValidator(processor_text)] = None
    """How media are read, as vLLM's JSON: {"video": {"num_frames": 32}}; start-up heeds it for Nemotron's towers
    alone."""
    skip_mm_profiling: bool = False
    """Start without running the tower on the largest images, so without memory for that."""
    mm_encoder_tp_mode: Literal["weights", "data"] = "weights"
    """weights: the tower is cut like the model; data: each rank holds it whole and runs its own images."""
    mm_encoder_attn_backend: Annotated[str | None, BeforeValidator(as_kernels)] = None
    """Kernels of the tower's attention, e.g. FLASH_ATTN or FLASHINFER; None = the best the GPU allows."""
    mm_encoder_attn_dtype: Annotated[Literal["fp8"] | None, BeforeValidator(as_none)] = None
    """fp8: the tower's attention in 8 bits, FLASHINFER's on Blackwell, ROCM_AITER_FA's on MI300 and MI350."""
    mm_encoder_only: bool = False
    """An engine of the tower alone, without KV: refused, with what it takes instead."""
    mm_processor_device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where items are made ready: cuda, on the GPU, is for an encoder's own engine alone."""
    ec_transfer_config: Annotated[str | None, BeforeValidator(ec_transfer_text)] = None
    """An encoder in an engine of its own, as vLLM's JSON: a consumer of ECMooncakeConnector's keeps ec_buffer_size
    bytes on each GPU; an ec_producer has no KV."""
    mm_ipc_gpu_memory_gb: Annotated[float, Field(ge=0, le=1e5)] = 0.0
    """GiB of each GPU kept from the KV pool for videos that API servers decode there."""
    enable_return_routed_experts: bool = False
    """Tell which experts every token visited; needs a mixture of experts and prefix caching."""
    enable_prompt_embeds: bool = False
    """Take prompts as embeddings too: a buffer of a step's."""
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
    """Micro-batches of a step where --enable-dbo does not say two; 0 and 1 = whole steps."""
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
    use_fp64_gumbel: bool = False
    """Noise of sampling in 64 bits: timed as in 32, in a wider range; the first model runner keeps twice as much."""
    return_sampling_mask: bool = False
    """Give the tokens that sampling kept; without FlashInfer's kernels of sampling."""
    watermark_config: Annotated[str | None, BeforeValidator(watermark_text)] = None
    """Marks in what is sampled, as vLLM's JSON: {"key": 1}; vLLM's second model runner has it."""
    ir_op_priority: Annotated[str | None, BeforeValidator(priority_text)] = None
    """Kernels of norms and the like in the order of choice, as vLLM's JSON: {"rms_norm": ["vllm_c", "native"]}."""
    disable_nccl_for_dp_synchronization: bool | None = None
    """Data-parallel replicas agree on their batches through the host; None: they do."""
    enable_elastic_ep: bool = False
    """Experts' ranks may come and go while the engine runs."""
    elastic_ep_max_dp_size: Maybe[Degree] = None
    """Most data-parallel replicas there may be; None = as many as there are."""
    cp_kv_cache_interleave_size: Degree = 1
    """Tokens in a row that one of the context-parallel ranks holds; divides the block size."""
    dcp_kv_cache_interleave_size: Degree = 1
    """Above 1, in place of that, where a KV connector is; nothing without one."""
    nnodes: Degree = 1
    """Machines that the ranks lie on, equally many each (-n); groups over several exchange by the network."""
    node_rank: Annotated[int, Field(ge=0, le=4095)] = 0
    """Which of them a command is for (-r)."""
    data_parallel_size_local: Maybe[Annotated[int, Field(ge=0, le=4096)]] = None
    """Data-parallel replicas on each machine (-dpl), so over how many they lie; None: all on one, or as nnodes says."""
    data_parallel_backend: Literal["mp", "ray"] = "mp"
    """Who starts replicas on other machines: mp, a command on each; ray, one command (-dpb)."""
    data_parallel_start_rank: Maybe[Rank] = None
    """First replica of the machine that a command is for (-dpr); not headless, it means data_parallel_hybrid_lb."""
    data_parallel_rank: Maybe[Rank] = None
    """The one replica that a command is for (-dpn), which means data_parallel_external_lb."""
    data_parallel_hybrid_lb: bool = False
    """Each machine's API servers spread requests over its own replicas (-dph); who spreads over machines is outside."""
    data_parallel_external_lb: bool = False
    """Each replica has an API server of its own and a command of its own (-dpe); who spreads requests is outside."""
    data_parallel_multi_port_external_lb: bool = False
    """So too, by one command a machine, each replica at a port of its own (-dpm)."""
    headless: bool = False
    """The command of a machine without API servers; the whole deployment is planned."""
    runner: Runner = "auto"
    """generate, or pooling: embed or score; auto: as the model's class does."""
    convert: Convert = "auto"
    """What a generating class is made into for pooling: embed, without LM head; classify, with a layer that scores."""
    pooler_config: Annotated[str | None, BeforeValidator(pooler_text)] = None
    """How it pools, as vLLM's JSON: {"pooling_type": "STEP"}; MEAN, CLS and STEP run whole prompts, and cache none."""
    env: Annotated[str | None, BeforeValidator(environment_text)] = None
    """vLLM's environment variables that act on the plan, NAME=VALUE parted by spaces: VLLM_PP_LAYER_PARTITION=30,34."""

    @property
    def num_micro_batches(self) -> int:
        """Parts that long steps are split into, which overlap; 1: none (vLLM's `num_ubatches`)."""
        return 2 if self.enable_dbo else max(1, self.ubatch_size)

    @property
    def interleaved_tokens(self) -> int:
        """Tokens in a row on one context-parallel rank: workers take the older flag's as they start a KV connector.

        Source: vLLM 0.32 `config/vllm.py: adjust_dcp_kv_cache_interleave_size`.
        """
        connects = self.kv_offloading_size is not None or self.kv_transfer_config is not None
        older = self.decode_context_parallel_size > 1 and connects and self.dcp_kv_cache_interleave_size > 1
        return self.dcp_kv_cache_interleave_size if older else self.cp_kv_cache_interleave_size

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
