"""Prompts split over ranks of their own, `--prefill-context-parallel-size`: who holds what, and what vLLM refuses.

vLLM 0.32: these ranks come on top of all others and each holds the whole KV pool (`config/parallel.py`,
`v1/core/sched/scheduler.py: pcp_world_size=1`); experts are cut or shared over them as over data-parallel ranks
(`fused_moe/config.py: flatten_tp_across_dp_and_pcp`). Start-up profiles before they split anything
(`v1/worker/gpu/model_runner.py`: the manager is built with the KV cache).
"""

from __future__ import annotations

from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.ground.errors import KvplanError
from kvplan.models.spec import ModelSpec

FLAG = "--prefill-context-parallel-size"


def expert_replicas(args: EngineArgs) -> int:
    """Ranks beside the tensor-parallel ones over which experts are cut or shared."""
    return args.data_parallel_size * args.prefill_context_parallel_size


def check_prefill_context(model: ModelSpec, args: EngineArgs, engine: EngineVersion) -> None:
    """Refuse what vLLM 0.32 refuses (`v1/worker/gpu/pcp_manager.py: validate_config`).

    Raises:
        KvplanError: with what it lacks.
    """
    if args.prefill_context_parallel_size == 1:
        return
    if engine.engine != "vllm":
        raise KvplanError(f"{FLAG}: {engine.engine} has no such ranks")
    if not all(
        mixer.is_latent for layer in model.layers for mixer in layer.mixers if mixer.kind.keeps_tokens
    ):
        raise KvplanError(f"{FLAG}: vLLM 0.32 splits prompts of latent attention (MLA) alone")
    if model.vision is not None and not args.language_model_only:
        raise KvplanError(f"{FLAG}: vLLM 0.32 does not split prompts with items; add --language-model-only")
    if args.enable_lora:
        raise KvplanError(f"{FLAG}: vLLM 0.32 does not take it beside --enable-lora")
    if args.decode_context_parallel_size > 1:
        raise KvplanError(f"{FLAG} beside --decode-context-parallel-size is not planned")
    drafts, method = args.num_speculative_tokens, args.speculative_method
    modules = min(model.num_mtp_modules, drafts)
    if drafts and method != "dspark" and (method != "mtp" or modules > 1):
        raise KvplanError(f"{FLAG}: beside it vLLM 0.32 drafts by DSpark or MTP of one module alone")
    sparse = any(mixer.index_topk for layer in model.layers for mixer in layer.mixers)
    if sparse and not args.enforce_eager:
        raise KvplanError(f"{FLAG}: with sparse attention vLLM 0.32 needs --enforce-eager")


def check_hc_sp(model: ModelSpec, args: EngineArgs, engine: EngineVersion) -> None:
    """Refuse HyperConnections cut over ranks where vLLM 0.32 does (`config/model.py: verify_with_parallel_config`).

    Raises:
        KvplanError: a model that has none so, or several stages.
    """
    if not args.enable_hc_sp or args.tensor_parallel_size == 1 or engine.engine != "vllm":
        return
    if not model.architecture.startswith("Qwen4Exp"):
        raise KvplanError(f"--enable-hc-sp: vLLM 0.32 has it for Qwen4Exp alone, not for {model.name}")
    if args.pipeline_parallel_size > 1:
        raise KvplanError("--enable-hc-sp: only with one pipeline stage")
