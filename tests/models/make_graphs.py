"""Asks vLLM which CUDA graphs it captures and which one a step replays, for many flags and models.

    python tests/models/make_graphs.py [--tiers]

Writes `tests/fixtures/graphs_vllm_0.32.json.xz`: for each architecture, card, flags and what attention allows, the mode
and sizes that `VllmConfig` and `resolve_cudagraph_mode_and_sizes` settle on, the numbers of graphs that the second
model runner's `CudaGraphManager` captures, and [tokens, decodes alone, padded tokens, kind] of steps by its dispatcher;
or the text of the refusal; beside them what each attention backend's builder says of graphs. Environment: see
`tests/models/vllm_meta.py`.
"""

from __future__ import annotations

import copy
import itertools
import json
import lzma
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vllm_meta
from make_architectures import FIXTURE

GRAPHS = FIXTURE.with_name("graphs_vllm_0.32.json.xz")
MODELS = (
    *("Qwen3MoeForCausalLM", "DeepseekV3ForCausalLM", "GlmMoeDsaForCausalLM", "DeepseekV4ForCausalLM"),
    *("DeepseekV41ForCausalLM", "KimiLinearForCausalLM", "Qwen3NextForCausalLM", "Llama4ForCausalLM"),
    "WhisperForConditionalGeneration",
)
"""Architectures beside a dense one: mixtures, families whose graphs break themselves, hybrids, an encoder-decoder."""
MODES = ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
FLAGS: tuple[dict[str, Any], ...] = (
    {},
    {"max_num_seqs": 1},
    {"max_num_seqs": 100},
    {"max_num_seqs": 1024},
    {"max_num_seqs": 300, "max_num_batched_tokens": 300},
    {"max_num_seqs": 37, "max_num_batched_tokens": 50},
    {"enforce_eager": True},
    {"performance_mode": "interactivity"},
    {"performance_mode": "interactivity", "max_num_seqs": 5},
    {"performance_mode": "throughput"},
    *({"optimization_level": level} for level in range(4)),
    {"max_cudagraph_capture_size": 42},
    {"max_cudagraph_capture_size": 2048},
    {"max_cudagraph_capture_size": 0},
    {"max_cudagraph_capture_size": 300, "performance_mode": "interactivity"},
    {"cudagraph_capture_sizes": [1, 2, 4, 7, 7, 100]},
    {"cudagraph_capture_sizes": [64, 8, 20000]},
    {"cudagraph_capture_sizes": [1, 2, 4], "max_cudagraph_capture_size": 4},
    {"cudagraph_capture_sizes": [1, 2, 4], "max_cudagraph_capture_size": 8},
    {"cudagraph_capture_sizes": [1, 2], "compilation_config": {"cudagraph_capture_sizes": [1, 2]}},
    {"max_cudagraph_capture_size": 8, "compilation_config": {"max_cudagraph_capture_size": 8}},
    *({"compilation_config": {"cudagraph_mode": mode}} for mode in MODES),
    *({"compilation_config": {"cudagraph_mode": mode, "mode": 0}} for mode in MODES),
    {"compilation_config": {"mode": 0}},
    {"compilation_config": {"mode": 1}},
    {"optimization_level": 0, "compilation_config": {"cudagraph_mode": "FULL"}},
    {"optimization_level": 0, "compilation_config": {"cudagraph_mode": "PIECEWISE", "mode": 3}},
    *({"compilation_config": {"cudagraph_mode": mode, "splitting_ops": []}} for mode in MODES[1:]),
    {"compilation_config": {"pass_config": {"fuse_attn_quant": True}}},
    {"compilation_config": {"cudagraph_capture_sizes": [3, 6, 9], "cudagraph_mode": "FULL"}},
    {"compilation_config": {"max_cudagraph_capture_size": 24}, "max_num_seqs": 4},
    {"enable_lora": True, "max_loras": 3},
    {"enable_lora": True, "max_loras": 4, "specialize_active_lora": True},
    {"enable_lora": True, "max_loras": 4, "compilation_config": {"cudagraph_specialize_lora": False}},
)
DRAFTS = (0, 1, 2, 6)
SUPPORT = ("NEVER", "UNIFORM_SINGLE_TOKEN_DECODE", "UNIFORM_BATCH", "ALWAYS")
STEPS = (1, 2, 3, 5, 8, 9, 17, 31, 42, 60, 100, 129, 257, 300, 511, 512, 513, 700, 1024, 1025)
"""Tokens of the steps that are dispatched: with prompt tokens, and as decodes where whole sequences make them up."""


def ask(config: dict[str, Any], flags: dict[str, Any], drafts: int, support: str) -> dict[str, Any]:
    """What vLLM makes of it."""
    from vllm.config import set_current_vllm_config
    from vllm.v1.attention.backend import AttentionCGSupport
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager
    from vllm.v1.worker.gpu.lora_utils import get_lora_capture_cases

    told = {"enforce_eager": False} | flags
    if drafts:
        told["speculative_config"] = {"method": "ngram_gpu", "num_speculative_tokens": drafts}
    whole = vllm_meta.engine_config(copy.deepcopy(config), 1, **copy.deepcopy(told))
    compilation, width = whole.compilation_config, 1 + drafts
    breaks = compilation.mode == 0 and whole._uses_breakable_cudagraph_by_default()
    mode = compilation.resolve_cudagraph_mode_and_sizes(
        AttentionCGSupport[support],
        "the backend",
        width,
        use_v2_model_runner=True,
        piecewise_capture_available=breaks or compilation.mode == 3,
    )
    with set_current_vllm_config(whole):
        manager = CudaGraphManager(
            whole,
            None,
            mode,
            width,
            lora_capture_cases=get_lora_capture_cases(whole.lora_config, compilation),
        )
    manager._graphs_captured = True
    captured = {kind.name: len(descs) for kind, descs in manager._capture_descs.items()}
    most, steps = whole.scheduler_config.max_num_seqs, []
    for tokens in STEPS:
        if tokens > 1:
            reqs = min(tokens - 1, most) if tokens - 1 <= most * width else most
            found = manager.dispatch(reqs, tokens, None, 0)
            steps.append([tokens, False, found.num_tokens, found.cg_mode.name])
        if tokens % width == 0 and tokens // width <= most:
            found = manager.dispatch(tokens // width, tokens, width, 0)
            steps.append([tokens, True, found.num_tokens, found.cg_mode.name])
    sizes = compilation.cudagraph_capture_sizes if mode.name != "NONE" else []
    return {"mode": mode.name, "sizes": sizes, "captured": captured, "steps": steps}


SPREAD = {"data_parallel_size": 2, "enable_expert_parallel": True}
LOW = SPREAD | {"all2all_backend": "deepep_low_latency"}
DENSE, MOE = "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"
DEPLOYMENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((MOE, flags) for flags in ({}, SPREAD, LOW, LOW | {"performance_mode": "throughput"})),
    *((MOE, SPREAD | {"all2all_backend": name}) for name in ("deepep_high_throughput", "moonep", "nixl_ep")),
    *((DENSE, {"all2all_backend": name}) for name in ("deepep_high_throughput", "moonep")),
    *((MOE, SPREAD | {"enable_expert_parallel": False, "all2all_backend": name})
      for name in ("deepep_high_throughput", "deepep_low_latency")),
    (MOE, SPREAD | {"enable_dbo": True}),
    (MOE, {"enable_dbo": True}),
    (DENSE, {"ubatch_size": 2}),
    (DENSE, {"ubatch_size": 1}),
    (DENSE, {"enable_dbo": True, "all2all_backend": "deepep_low_latency"}),
    (MOE, LOW | {"enable_dbo": True}),
    (MOE, LOW | {"enable_dbo": True, "ubatch_size": 4}),
    (MOE, LOW | {"enable_dbo": True, "dbo_decode_token_threshold": 1}),
    (MOE, SPREAD | {"ubatch_size": 4, "all2all_backend": "nixl_ep", "dbo_prefill_token_threshold": 3}),
    ("DeepseekV41ForCausalLM", LOW | {"enable_dbo": True}),
    (MOE, LOW | {"moe_backend": "flashinfer_moe_ep_cutedsl"}),
    (MOE, {"moe_backend": "flashinfer_moe_ep_mega_deep_gemm"}),
    (DENSE, {"mamba_ssu_algorithm": "simple"}),
    (DENSE, {"mamba_ssu_algorithm": "simple", "mamba_backend": "flashinfer"}),
    (DENSE, {"attention_backend": "FLASHINFER", "attention_config": {"backend": "FLASHINFER"}}),
    (DENSE, {"attention_config": {"backend": "flashinfer"}}),
    (DENSE, {"attention_config": {"backend": "auto"}}),
    (DENSE, {"attention_backend": "auto"}),
    (DENSE, {"kda_prefill_backend": "fused"}),
    (DENSE, {"kda_prefill_backend": "flashkda"}),
)  # fmt: skip
"""Architecture, flags of kernels between ranks, of micro-batches and of backends."""


def deploy(config: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Graph mode, batch, asynchronous scheduling, micro-batches, runner and backend of one deployment on an H100."""
    told = {
        "max_num_batched_tokens": None,
        "max_num_seqs": None,
        "enforce_eager": False,
        "async_scheduling": None,
    }
    if flags.get("data_parallel_size", 1) > 1:
        told |= {
            "data_parallel_size_local": 1,
            "data_parallel_address": "127.0.0.1",
            "data_parallel_rpc_port": 1234,
        }
    whole = vllm_meta.engine_config(copy.deepcopy(config), 1, **told | copy.deepcopy(flags))
    backend = whole.attention_config.backend
    return {
        "mode": whole.compilation_config.cudagraph_mode.name,
        "max_num_batched_tokens": whole.scheduler_config.max_num_batched_tokens,
        "max_num_seqs": whole.scheduler_config.max_num_seqs,
        "async_scheduling": whole.scheduler_config.async_scheduling,
        "micro_batches": whole.parallel_config.num_ubatches if whole.parallel_config.use_ubatching else 1,
        "second_runner": whole.use_v2_model_runner,
        "attention_backend": backend.name if backend else None,
    }


def supports() -> dict[str, str]:
    """What the metadata builder of each attention backend says of itself on an H100."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    found = {}
    for backend in AttentionBackendEnum:
        try:
            builder = backend.get_class().get_builder_cls()
        except Exception:  # kernels of other vendors, of packages that are not there
            continue
        found[backend.name] = builder._cudagraph_support.name
    return found


def cases() -> Any:
    """(architecture, card, flags, drafts, support): all flags of a dense model, fewer of the rest."""
    for flags, drafts in itertools.product(FLAGS, DRAFTS):
        yield "Qwen3ForCausalLM", "H100", flags, drafts, "ALWAYS"
    for flags, support, drafts in itertools.product(FLAGS[24:], SUPPORT[:3], (0, 2)):
        yield "Qwen3ForCausalLM", "H100", flags, drafts, support
    for flags, drafts in itertools.product(FLAGS[:6], (0, 2)):
        yield "Qwen3ForCausalLM", "B200", flags, drafts, "UNIFORM_BATCH"
    for name, flags, drafts in itertools.product(MODELS, (FLAGS[0], *FLAGS[10:14], *FLAGS[24:36]), (0, 2)):
        yield name, "H100", flags, drafts, "UNIFORM_BATCH"


TIERS: tuple[tuple[int, list[list[int]]], ...] = (
    (3, [[1, 8, 3], [9, 64, 1], [65, 256, 0]]),
    (6, [[1, 4, 6], [5, 16, 4], [32, 100, 2]]),
    (2, [[1, 400, 5]]),
    (16, [[1, 1, 16], [2, 400, 2]]),
    (1, [[1, 16, 1], [17, 17, 0]]),
)
"""Drafts, and [from, to, drafts] by the requests of a step."""
TIER_FLAGS: tuple[dict[str, Any], ...] = (
    *({}, {"max_num_seqs": 10}, {"max_num_seqs": 100}, {"max_num_seqs": 1024}),
    *({"performance_mode": "interactivity"}, {"max_cudagraph_capture_size": 42}, {"data_parallel_size": 2}),
    *({"cudagraph_capture_sizes": [1, 2, 4, 7, 100]}, {"max_num_seqs": 37, "max_num_batched_tokens": 50}),
    *({"compilation_config": {"cudagraph_mode": mode}} for mode in MODES),
    {"enable_lora": True, "max_loras": 3},
)


def ask_tiers(
    config: dict[str, Any], flags: dict[str, Any], drafts: int, tiers: list[list[int]], second: bool
) -> dict[str, Any]:
    """Modes, sizes, numbers where drafts hang on the batch; of steps [tokens, of a sequence, padded tokens, kind]."""
    from vllm.config import set_current_vllm_config
    from vllm.v1.attention.backend import AttentionCGSupport
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager
    from vllm.v1.worker.gpu.lora_utils import get_lora_capture_cases

    told: dict[str, Any] = {"enforce_eager": False} | copy.deepcopy(flags)
    if told.get("data_parallel_size", 1) > 1:
        told |= {
            "data_parallel_size_local": 1,
            "data_parallel_address": "127.0.0.1",
            "data_parallel_rpc_port": 1234,
        }
    told["speculative_config"] = {
        "method": "ngram_gpu",
        "num_speculative_tokens": drafts,
        "num_speculative_tokens_per_batch_size": copy.deepcopy(tiers),
    }
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(second))
    whole = vllm_meta.engine_config(copy.deepcopy(config), 1, **told)
    compilation, width = whole.compilation_config, 1 + drafts
    dynamic = whole.speculative_config.uses_dynamic_speculative_decoding()
    if not second:
        sizes = compilation.cudagraph_capture_sizes if compilation.cudagraph_mode.name != "NONE" else []
        return {"mode": compilation.cudagraph_mode.name, "sizes": sizes, "dynamic": dynamic}
    mode = compilation.resolve_cudagraph_mode_and_sizes(
        AttentionCGSupport.ALWAYS,
        "the backend",
        width,
        use_v2_model_runner=True,
        piecewise_capture_available=True,
    )
    with set_current_vllm_config(whole):
        cases = get_lora_capture_cases(whole.lora_config, compilation)
        manager = CudaGraphManager(whole, None, mode, width, lora_capture_cases=cases)
    manager._graphs_captured = True
    captured = {kind.name: len(descs) for kind, descs in manager._capture_descs.items()}
    most, steps = whole.scheduler_config.max_num_seqs, []
    for each in sorted({1 + min(k, drafts) for _, _, k in tiers}) if dynamic else [width]:
        for reqs in (n for n in (1, 2, 5, 8, 9, 17, 64, 65, 100, 250, 512) if n <= most):
            found = manager.dispatch(reqs, reqs * each, each, 0)
            steps.append([reqs * each, each, found.num_tokens, found.cg_mode.name])
    sizes = compilation.cudagraph_capture_sizes if mode.name != "NONE" else []
    return {"mode": mode.name, "sizes": sizes, "dynamic": dynamic, "captured": captured, "steps": steps}


def ask_trimmed(config: dict[str, Any], flags: dict[str, Any], drafts: int) -> dict[str, Any]:
    """The same where drafts are left out on the card: [tokens, requests, padded tokens, kind] of steps of decodes."""
    from vllm.config import set_current_vllm_config
    from vllm.v1.attention.backend import AttentionCGSupport
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager
    from vllm.v1.worker.gpu.lora_utils import get_lora_capture_cases
    from vllm.v1.worker.gpu.spec_decode.adaptive_verification import resolve_adaptive_cudagraph_mode

    told: dict[str, Any] = {"enforce_eager": False} | copy.deepcopy(flags)
    told["speculative_config"] = {
        "method": "ngram_gpu", "num_speculative_tokens": drafts, "enable_adaptive_verification": True,
    }  # fmt: skip
    os.environ.pop("VLLM_USE_V2_MODEL_RUNNER", None)
    whole = vllm_meta.engine_config(copy.deepcopy(config), 1, **told)
    compilation, width = whole.compilation_config, 1 + drafts
    pieces = compilation.mode == 3
    compilation.cudagraph_mode = resolve_adaptive_cudagraph_mode(
        compilation.cudagraph_mode, piecewise_capture_available=pieces
    )
    mode = compilation.resolve_cudagraph_mode_and_sizes(
        AttentionCGSupport.ALWAYS,
        "the backend",
        width,
        use_v2_model_runner=True,
        piecewise_capture_available=pieces,
    )
    with set_current_vllm_config(whole):
        cases = get_lora_capture_cases(whole.lora_config, compilation)
        manager = CudaGraphManager(whole, None, mode, width, lora_capture_cases=cases, varlen_decode=True)
    manager._graphs_captured = True
    captured = {kind.name: len(descs) for kind, descs in manager._capture_descs.items()}
    most, steps = whole.scheduler_config.max_num_seqs, []
    for reqs in (n for n in (1, 2, 5, 9, 17, 64, 100, 250, 512) if n <= most):
        for tokens in sorted({reqs, reqs + drafts, reqs * width - 1, reqs * width}):
            found = manager.dispatch(reqs, tokens, None, 0, max_query_len=width)
            steps.append([tokens, reqs, found.num_tokens, found.cg_mode.name])
    return {
        "mode": mode.name, "sizes": compilation.cudagraph_capture_sizes, "captured": captured, "steps": steps,
    }  # fmt: skip


def tier_cases(known: dict[str, Any]) -> list[dict[str, Any]]:
    """All of a dense model on an H100, by both model runners."""
    found = []
    for flags, (drafts, tiers), second in itertools.product(TIER_FLAGS, TIERS, (False, True)):
        try:
            answer = ask_tiers(known["Qwen3ForCausalLM"]["config"], flags, drafts, tiers, second)
        except (ValueError, AssertionError, RuntimeError) as error:
            answer = {"refused": str(error).strip().splitlines()[-1][:200]}
        found.append({"flags": flags, "drafts": drafts, "tiers": tiers, "second": second, **answer})
    for flags, drafts in itertools.product(TIER_FLAGS, DRAFTS[1:]):
        try:
            answer = ask_trimmed(known["Qwen3ForCausalLM"]["config"], flags, drafts)
        except (ValueError, AssertionError, RuntimeError) as error:
            lines = [line for line in str(error).splitlines() if "Adaptive" in line]
            answer = {"refused": lines[0].strip()[:120] if lines else str(error)[-200:]}
        found.append({"flags": flags, "drafts": drafts, "trimmed": True, **answer})
    return found


def main() -> None:
    known = json.loads(lzma.decompress(FIXTURE.read_bytes()))
    card = vllm_meta.platform()
    import vllm.config.vllm as module

    module.HAS_TRITON = True
    import vllm.v1.worker.gpu.cudagraph_utils as manager

    manager.get_pp_group = lambda: vllm_meta._Ranks()
    card.get_global_graph_pool = classmethod(lambda cls: None)
    if "--tiers" in sys.argv:
        card.card = vllm_meta.CARDS["H100"]
        text = ",\n ".join(json.dumps(case, separators=(",", ":")) for case in tier_cases(known))
        GRAPHS.with_name("draft_tiers_vllm_0.32.json").write_text(f"[{text}]\n")
        return
    found = []
    for name, gpu, flags, drafts, support in cases():
        card.card = vllm_meta.CARDS[gpu]
        os.environ.pop("VLLM_USE_BREAKABLE_CUDAGRAPH", None)
        try:
            answer = ask(known[name]["config"], flags, drafts, support)
        except (ValueError, AssertionError, RuntimeError) as error:
            answer = {
                "refused": str(error).strip().splitlines()[-1][:200] if str(error) else type(error).__name__
            }
        found.append(
            {"model": name, "gpu": gpu, "flags": flags, "drafts": drafts, "support": support, **answer}
        )
    card.card = vllm_meta.CARDS["H100"]
    deployed = []
    for name, flags in DEPLOYMENTS:
        os.environ.pop("VLLM_USE_BREAKABLE_CUDAGRAPH", None)
        try:
            answer = deploy(known[name]["config"], flags)
        except (ValueError, AssertionError) as error:
            answer = {"refused": str(error).strip().splitlines()[-1][:200]}
        deployed.append({"model": name, "flags": flags, **answer})
    answers = {"support": supports(), "cases": found, "deployments": deployed}
    GRAPHS.write_bytes(lzma.compress(json.dumps(answers, separators=(",", ":")).encode(), preset=9))
    print(len(found), "cases")


if __name__ == "__main__":
    main()
