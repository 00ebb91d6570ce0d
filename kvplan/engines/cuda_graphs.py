"""Which CUDA graphs vLLM captures under flags: modes, sizes, levels, kernels between ranks.

Mirrors vLLM 0.32 (`config/vllm.py`, `config/compilation.py`); what that refuses is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvplan.engines.compilation_config import CompilationFlags, Compile, compilation_flags
from kvplan.engines.drafting import draft_tiers, verifies_adaptively
from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.engines.kernel_flags import EAGER_EXCHANGES
from kvplan.engines.speculative_config import speculation
from kvplan.formulas.draft_tiers import drafts_by_batch
from kvplan.formulas.graphs import (
    MAX_CAPTURE_SIZE,
    MODES,
    Graphs,
    Support,
    default_sizes,
    max_capture_size,
    settled_mode,
)
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import cdiv
from kvplan.models.spec import ModelSpec

OF_LEVEL = ("NONE", "PIECEWISE", "FULL_AND_PIECEWISE", "FULL_AND_PIECEWISE")
"""Graph mode by --optimization-level."""
LARGER_GRAPHS = (0, 28)
"""Since when the largest default size is twice as large on Blackwell of data centres (vLLM PR 49390)."""
WITHOUT_PIECES = {"PIECEWISE": "NONE", "FULL_AND_PIECEWISE": "FULL_DECODE_ONLY"}
BREAKS_ITSELF = (
    *("DeepseekV32", "DeepseekV4", "DeepseekV41", "Dots3Note", "Glm5Next", "GlmMoeDsa", "HYV4", "Inkling"),
    *("KimiK3", "KimiLinear", "MiniMaxM3Sparse", "Qwen4Exp"),
)
"""Families whose pieces are cut while a graph is captured, without compilation (vLLM's breakable graphs)."""
NOT_COMPILED = ("Dbrx", "Ernie4_5_VLMoe", "HfMoondream", "Moondream3", "Param2MoE", "Step1ForCausalLM")
"""Families whose classes in vLLM 0.32 torch.compile does not wrap, of those that the fixture of architectures has: no
graphs in pieces."""


def find_graphs(
    args: EngineArgs,
    model: ModelSpec,
    compute_capability: float,
    *,
    support: Support = Support.ALWAYS,
    rounds_all: bool = False,
    version: EngineVersion = EngineVersion(),  # noqa: B008 (a tuple)
) -> Graphs:
    """The graphs that vLLM captures under resolved flags, whose attention can be captured as `support` says.

    `rounds_all`: by its first model runner, which rounds every size up to whole sequences of drafts.
    Raises KvplanError for sizes and modes that vLLM refuses.
    """
    told = compilation_flags(args.compilation_config)
    tiers = draft_tiers(args)
    compiled, mode = _modes(args, model, told, no_full=rounds_all and tiers is not None)
    seqs, tokens = args.max_num_seqs or MAX_CAPTURE_SIZE, args.max_num_batched_tokens or 1 << 30
    width = 1 + args.num_speculative_tokens
    made = drafts_by_batch(tiers, seqs, args.num_speculative_tokens)
    widest = {1 + drafts: n for n, drafts in enumerate(made) if n}
    ceiling = max_capture_size(compute_capability) if version.is_vllm(*LARGER_GRAPHS) else MAX_CAPTURE_SIZE
    sizes = _sizes(args, told, seqs, tokens, ceiling, widest) if mode != "NONE" else ()
    mode = _captured(mode, args, model, told, compiled)
    if speculation(args.speculative_config).enable_adaptive_verification and "FULL" not in mode:
        raise KvplanError(
            f"enable_adaptive_verification of --speculative-config requires full CUDA graphs, not {mode}"
        )
    varlen = verifies_adaptively(args)
    if varlen:  # `resolve_adaptive_cudagraph_mode`
        in_pieces = mode != "FULL_DECODE_ONLY" and (compiled or _breaks(args, model))
        mode = "FULL_AND_PIECEWISE" if in_pieces else "FULL_DECODE_ONLY"
    split = compiled and told.splitting_ops is None and not told.pass_config.fuse_attn_quant
    settled = settled_mode(mode, support, width, compiled=compiled, split=split)
    if not settled:
        raise KvplanError(
            "cudagraph_mode FULL: the attention backend cannot be captured in a graph; try PIECEWISE"
        )
    if not rounds_all and not _has_pieces(args, model):
        settled = WITHOUT_PIECES.get(settled, settled)
    if rounds_all and width > 1 and MODES[settled][0] == "full":
        sizes = _rounded(sizes, width)
    cases = _lora_cases(args, told) if not rounds_all or told.cudagraph_specialize_lora else 1
    widths = tuple(sorted(widest)) if tiers is not None and not varlen else ()
    return Graphs(settled, sizes if settled != "NONE" else (), seqs, width, cases, widths, varlen)


def _lora_cases(args: EngineArgs, told: CompilationFlags) -> int:
    """Numbers of active adapters that have graphs of their own: none, all; specialised also the powers of two.

    Source: vLLM 0.32 `lora/utils.py: get_captured_lora_counts`.
    """
    if not args.enable_lora:
        return 1
    if not (args.specialize_active_lora and told.cudagraph_specialize_lora):
        return 2
    most = args.max_loras + 1
    return 1 + len({most, *(1 << i for i in range(most.bit_length()))})


def _modes(
    args: EngineArgs, model: ModelSpec, told: CompilationFlags, *, no_full: bool = False
) -> tuple[bool, str]:
    """(whether vLLM's own backend compiles the model, which graphs are left then).

    `no_full`: the first model runner has no whole graphs for steps of now more drafts, now fewer
    (`_maybe_override_dynamic_sd_cudagraph_mode`).
    """
    if args.enforce_eager:
        return False, "NONE"
    breaks = _breaks(args, model)
    by_level: Compile = "VLLM_COMPILE" if args.optimization_level > 0 else "NONE"
    compiled = (told.mode or by_level) == "VLLM_COMPILE" and not breaks
    mode = told.cudagraph_mode or OF_LEVEL[args.optimization_level]
    if no_full and "FULL" in mode:
        mode = "PIECEWISE"
    if not compiled and not breaks:
        mode = WITHOUT_PIECES.get(mode, mode)
    if told.mode == "STOCK_TORCH_COMPILE" and not breaks:
        return False, "NONE"
    if mode.startswith("FULL") and args.runner == "pooling":
        mode = "PIECEWISE"  # whose requests never decode (`config/vllm.py`)
    if model.encoded_tokens and mode != "NONE":
        mode = "FULL_DECODE_ONLY"
    return compiled, mode


def _breaks(args: EngineArgs, model: ModelSpec) -> bool:
    """Whether pieces are cut while graphs are captured: as the variable says, else of some families."""
    told = args.environment.use_breakable_cudagraph
    return model.architecture.startswith(BREAKS_ITSELF) if told is None else told


def _has_pieces(args: EngineArgs, model: ModelSpec) -> bool:
    """Whether graphs can be cut in pieces at all: some classes are not compiled, and break only where told to."""
    return _breaks(args, model) or not model.architecture.startswith((*BREAKS_ITSELF, *NOT_COMPILED))


def _captured(mode: str, args: EngineArgs, model: ModelSpec, told: CompilationFlags, compiled: bool) -> str:
    """The mode after what pieces end at and the kernels between ranks."""
    if compiled and told.splitting_ops is None and told.pass_config.fuse_attn_quant:
        mode = "FULL" if "PIECEWISE" in mode and not told.use_inductor_graph_partition else mode
    elif compiled and told.splitting_ops == ():
        mode = {"PIECEWISE": "NONE", "FULL_AND_PIECEWISE": "FULL"}.get(mode, mode)
    spread = model.is_moe and args.data_parallel_size > 1
    return "NONE" if spread and args.all2all_backend in EAGER_EXCHANGES else mode


def _sizes(
    args: EngineArgs, told: CompilationFlags, seqs: int, tokens: int, ceiling: int, widest: Mapping[int, int]
) -> tuple[int, ...]:
    for name in ("cudagraph_capture_sizes", "max_cudagraph_capture_size"):
        if getattr(args, name) not in (None, ()) and getattr(told, name) is not None:
            raise KvplanError(
                f"--{name.replace('_', '-')} and {name} of --compilation-config: state one of them"
            )
    stated = args.cudagraph_capture_sizes or told.cudagraph_capture_sizes
    most = _either(args.max_cudagraph_capture_size, told.max_cudagraph_capture_size)
    if most is not None and most < 1:
        raise KvplanError(
            f"--max-cudagraph-capture-size {most}: at least 1; --enforce-eager leaves all CUDA graphs out"
        )
    if stated is None:
        return default_sizes(
            seqs,
            tokens,
            width=1 + args.num_speculative_tokens,
            ceiling=ceiling,
            stated_max=most,
            fine=args.performance_mode == "interactivity",
            widest=widest,
        )
    if not stated or min(stated) < 1:
        raise KvplanError("--cudagraph-capture-sizes: at least one, each of at least 1 token")
    sizes = tuple(sorted({n for n in stated if n <= tokens}))
    largest = sizes[-1] if sizes else 0
    if most not in (None, largest):
        raise KvplanError(
            f"--max-cudagraph-capture-size {most} is not the largest of --cudagraph-capture-sizes, {largest}; "
            "leave it out"
        )
    return sizes


def _either(one: int | None, other: int | None) -> int | None:
    return other if one is None else one


def _rounded(sizes: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Sizes of whole sequences of drafts (`adjust_cudagraph_sizes_for_spec_decode`)."""
    most = sizes[-1] if sizes else 0
    rounded = {width * cdiv(n, width) for n in sizes}
    kept = tuple(sorted(n for n in rounded if n <= most))
    if sizes and not kept:
        raise KvplanError(
            f"--cudagraph-capture-sizes up to {most}: none holds a sequence of {width} tokens, one and its drafts"
        )
    return kept
