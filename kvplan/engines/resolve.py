"""What the engine decides where flags leave it to it, by version, card, entry point and model; what it refuses."""

from __future__ import annotations

from dataclasses import replace

from kvplan.engines.flags import EngineArgs, EngineVersion, EntryPoint, ResolvedArgs, parse_engine
from kvplan.engines.kernel_flags import BATCHED_EXCHANGES, attention_config
from kvplan.engines.kv_transfer import offloading_gib
from kvplan.engines.mm_limits import unused_towers
from kvplan.engines.model_impl import as_implemented
from kvplan.engines.pooling import as_served, pooling_defaults
from kvplan.engines.sglang_defaults import FEWEST_REQUESTS
from kvplan.engines.sglang_defaults import defaults as sglang_defaults
from kvplan.engines.speculative_config import speculation
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.units import GiB
from kvplan.models.quantization import checkpoint_kv_dtype
from kvplan.models.spec import AttentionKind, AttentionSpec, ModelSpec


def as_read_by(engine: EngineVersion, model: ModelSpec, args: EngineArgs) -> ModelSpec:
    """The model with the longest context that this engine's version reads from its config, its rotary tables, and the
    modules that it loads to generate, embed or score."""
    if engine.engine == "vllm":
        model = as_served(model, args)
        model = _without_windows(model) if args.disable_sliding_window else model
        model = as_implemented(model, args)
    if engine.engine != "vllm" or engine.is_vllm(0, 32):
        return model
    rotary = model.rotary_until_0_31 or model.rotary
    longest = (
        model.max_model_len if engine.is_vllm(0, 30) else model.yarn_max_model_len or model.max_model_len
    )
    if (rotary, longest) == (model.rotary, model.max_model_len):
        return model
    return replace(model, max_model_len=longest, rotary=rotary)


def _without_windows(model: ModelSpec) -> ModelSpec:
    """Full attention where windows were, on contexts up to the window (vLLM 0.32 `config/model.py`)."""

    def whole(spec: AttentionSpec) -> AttentionSpec:
        return (
            replace(spec, kind=AttentionKind.FULL, window=0) if spec.kind is AttentionKind.SLIDING else spec
        )

    windows = [m.window for layer in model.layers for m in layer.mixers if m.kind is AttentionKind.SLIDING]
    if not windows:
        return model
    layers = tuple(
        replace(layer, attention=whole(layer.attention), beside=layer.beside and whole(layer.beside))
        for layer in model.layers
    )
    return replace(model, layers=layers, max_model_len=min(model.max_model_len, *windows))


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
    if version.engine == "vllm":
        args = args.model_copy(update=dict(pooling_defaults(model, args)))
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
    """On, except for V0, models without attention, hybrids of vLLM before 0.28 (PR 50991), and encoder-decoders."""
    if model.encoded_tokens:
        return False
    if args.enable_prefix_caching is not None:
        return args.enable_prefix_caching
    kinds = {mixer.kind for layer in model.layers for mixer in layer.mixers} - {AttentionKind.NONE}
    if version.legacy or kinds == {AttentionKind.STATE}:
        return False
    return not model.is_hybrid or version.engine != "vllm" or version.is_vllm(0, 28)


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
    if gpu.total_bytes >= 160 * GiB and version.is_vllm(0, 28):  # PR 51726
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
