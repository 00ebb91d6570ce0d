"""Asks vLLM itself how it reads `--speculative-config`: which method, how many tokens and slots, or what it refuses.

    python tests/models/make_speculation.py

Writes `tests/fixtures/speculation_vllm_0.32.json`, which `tests/engines/test_speculation.py` holds kvplan to.
Environment: see `vllm_meta.py`. A draft is given as a folder with its config.json.
"""

from __future__ import annotations

import copy
import json
import lzma
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vllm_meta

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
BODY = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **BODY}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **BODY}
TARGETS = {
    "qwen3": {**QWEN3, "hidden_size": 2048, "num_hidden_layers": 4},
    "gemma": "Gemma2ForCausalLM",
    "deepseek": "DeepseekV3ForCausalLM",
}
"""Configs, or cases of the architectures' fixture."""
WIDE = {"hidden_size": 2048}
DRAFTS: dict[str, dict[str, Any]] = {
    "small": {**QWEN3, "num_hidden_layers": 2},
    "other-words": {**QWEN3, "num_hidden_layers": 2, "vocab_size": 152064},
    "eagle": {**LLAMA, **WIDE, "num_hidden_layers": 1},
    "eagle3": {
        **LLAMA, **WIDE, "architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": 32000,
    },
    "dspark": {
        **QWEN3, **WIDE, "architectures": ["Qwen3DSparkModel"], "num_hidden_layers": 2, "block_size": 7,
        "markov_rank": 256, "target_layer_ids": [0, 2], "mask_token_id": 1,
    },
    "dflash": {
        **QWEN3, **WIDE, "architectures": ["DFlashDraftModel"], "num_hidden_layers": 2, "block_size": 16,
        "dflash_config": {"mask_token_id": 1, "target_layer_ids": [0, 2]},
    },
    "qwen3_5": {
        "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", **BODY, "num_hidden_layers": 4,
        "mtp_num_hidden_layers": 1, "layer_types": ["full_attention"] * 4,
    },
    "medusa": {"model_type": "medusa", "architectures": ["MedusaModel"], "hidden_size": 2048, "vocab_size": 151936,
               "num_hidden_layers": 1, "num_heads": 4},
    "mlp_speculator": {"model_type": "mlp_speculator", "architectures": ["MLPSpeculatorPreTrainedModel"],
                       "vocab_size": 151936, "emb_dim": 2048, "n_predict": 3, "top_k_tokens_per_head": [5, 4, 3]},
}  # fmt: skip
N = "num_speculative_tokens"
LAYERS = {"hf_config": {"eagle_aux_hidden_state_layer_ids": [1, 2]}}
"""Of extract_hidden_states."""


def cases() -> list[dict[str, Any]]:
    """Targets, configs, drafts, other flags."""
    plain: list[tuple[str, dict[str, Any]]] = [
        ("qwen3", {"method": "ngram"}),
        ("qwen3", {"method": "ngram", N: 0}),
        ("qwen3", {"method": "ngram", N: -1}),
        ("qwen3", {"method": "ngram", N: 4}),
        ("qwen3", {"method": "ngram", N: "4"}),
        ("qwen3", {"method": "ngram", N: 4.5}),
        ("qwen3", {"model": "[ngram]", N: 4}),
        ("qwen3", {"method": "[ngram]", N: 4}),
        ("qwen3", {"method": "ngram_gpu", N: 4}),
        ("qwen3", {"method": "ngram", N: 4, "prompt_lookup_max": 3, "prompt_lookup_min": 5}),
        ("qwen3", {"method": "ngram", N: 4, "prompt-lookup-max": 5, "prompt_lookup_min": 2}),
        ("qwen3", {"method": "ngram", N: 4, "prompt_lookup_max": 0}),
        ("qwen3", {"method": "ngram", N: 4, "draft_tensor_parallel_size": 3}),
        ("qwen3", {"method": "ngram", N: 4, "num_lookahead_slots": 3}),
        ("qwen3", {"method": "ngram", N: 4, "disable_by_batch_size": 3}),
        ("qwen3", {"method": "ngram", N: 4, "tensor_parallel_size": 1}),
        ("qwen3", {"method": "ngram", N: 4, "moe_backend": "fast"}),
        ("qwen3", {"method": "ngram", N: 4, "rejection_sample_method": "strict"}),
        ("qwen3", {"method": "ngram", N: 4, "rejection_sample_method": "block"}),
        ("qwen3", {"method": "ngram", N: 4, "synthetic_acceptance_length": 2}),
        ("qwen3", {"method": "ngram", N: 4, "rejection_sample_method": "synthetic"}),
        ("qwen3", {"method": "ngram", N: 4, "rejection_sample_method": "synthetic",
                   "synthetic_acceptance_length": 2.5}),
        ("qwen3", {"method": "ngram", N: 4, "rejection_sample_method": "synthetic",
                   "synthetic_acceptance_length": 6}),
        ("qwen3", {"method": "ngram", N: 2, "rejection_sample_method": "synthetic",
                   "synthetic_acceptance_rates": [0.4, 0.6]}),
        ("qwen3", {"method": "ngram", N: 2, "rejection_sample_method": "synthetic",
                   "synthetic_acceptance_rates": [0.6, 0.4]}),
        ("qwen3", {"method": "ngram", N: 4, "use_heterogeneous_vocab": True}),
        ("qwen3", {"method": "ngram", N: 4, "index_share_for_mtp_iteration": True}),
        ("qwen3", {"method": "ngram", N: 4, "dspark_draft_topk": 8}),
        ("qwen3", {"method": "ngram", N: 4, "draft_sample_method": "nucleus"}),
        ("qwen3", {"method": "ngram", N: 4, "enable_adaptive_verification": True,
                   "use_local_argmax_reduction": True}),
        ("qwen3", {"method": "ngram_gpu", N: 4, "disable_padded_drafter_batch": True}),
        ("qwen3", {"method": "suffix"}),
        ("qwen3", {"method": "suffix", "suffix_decoding_max_tree_depth": 8}),
        ("qwen3", {"method": "suffix", "suffix_decoding_max_tree_depth": 0}),
        ("qwen3", {"method": "suffix", "suffix_decoding_min_token_prob": 2, N: 4}),
        ("qwen3", {"method": "suffix", "suffix_decoding_max_spec_factor": -1, N: 4}),
        ("qwen3", {"model": "my_module.MyProposer", N: 4}),
        ("qwen3", {"method": "custom_class", N: 4}),
        ("qwen3", {"method": "custom_class", "model": "my_module.MyProposer", N: 4}),
        ("qwen3", {"method": "mtp", N: 1}),
        ("qwen3", {"method": "mtp"}),
        ("qwen3", {"method": "eagle3", N: 1}),
        ("qwen3", {"method": "medusa", N: 1}),
        ("qwen3", {"method": "egle", N: 1}),
        ("qwen3", {"method": "extract_hidden_states", N: 1, "draft_model_config": LAYERS}),
        ("deepseek", {"method": "mtp", N: 1}),
        ("deepseek", {"method": "mtp", N: 3}),
        ("deepseek", {"method": "deepseek_mtp", N: 1, "index_share_for_mtp_iteration": False}),
        ("deepseek", {"method": "mtp", N: 1, "draft_tensor_parallel_size": 4}),
        ("deepseek", {"method": "mtp", N: 1, "draft_tensor_parallel_size": 1}),
        ("deepseek", {"method": "mtp", N: 1, "max_model_len": 1 << 30}),
    ]  # fmt: skip
    found = [{"target": target, "config": config} for target, config in plain]
    beside: list[tuple[str, dict[str, Any]]] = [
        ("small", {}),
        ("small", {N: 3}),
        ("small", {N: 3, "method": "draft_model", "parallel_drafting": True}),
        ("small", {N: 3, "method": "draft_model", "draft_sample_method": "probabilistic"}),
        ("small", {N: 3, "method": "eagle"}),
        ("small", {N: 3, "method": "eagle3"}),
        ("small", {N: 3, "method": "mtp"}),
        ("small", {N: 3, "method": "dflash"}),
        ("small", {N: 3, "max_model_len": 65536}),
        ("small", {N: 3, "max_model_len": 4096}),
        ("small", {N: 3, "quantization": "fp8"}),
        ("small", {N: 3, "quantization": "fp7"}),
        ("small", {N: 3, "disable_padded_drafter_batch": True}),
        ("small", {N: 3, "draft_tensor_parallel_size": 3}),
        ("other-words", {N: 3}),
        ("other-words", {N: 3, "use_heterogeneous_vocab": True}),
        ("other-words", {N: 3, "use_heterogeneous_vocab": True, "draft_sample_method": "probabilistic"}),
        ("eagle", {N: 3}),
        ("eagle", {N: 3, "method": "eagle"}),
        ("eagle", {"method": "eagle"}),
        ("eagle", {N: 3, "method": "eagle3"}),
        ("eagle", {N: 3, "method": "eagle", "dspark_draft_topk": 4}),
        ("eagle3", {N: 3, "method": "eagle3"}),
        ("eagle3", {N: 3, "method": "eagle"}),
        ("eagle3", {N: 3, "method": "eagle3", "parallel_drafting": True}),
        ("dspark", {}),
        ("dspark", {"method": "dspark"}),
        ("dspark", {"method": "dspark", N: 4}),
        ("dspark", {"method": "dspark", N: 4, "dspark_draft_topk": 8}),
        ("dflash", {N: 15, "method": "dflash"}),
        ("dflash", {N: 15}),
        ("dflash", {"method": "dflash"}),
        ("qwen3_5", {N: 1}),
        ("qwen3_5", {}),
        ("medusa", {N: 4}),
        ("medusa", {N: 3, "method": "medusa"}),
        ("mlp_speculator", {N: 3}),
        ("mlp_speculator", {}),
    ]
    return found + [{"target": "qwen3", "draft": draft, "config": config} for draft, config in beside]


def ask(case: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """What vLLM makes of it, or its error."""
    config = copy.deepcopy(known[case["target"]])
    flags: dict[str, Any] = {"speculative_config": copy.deepcopy(case["config"]), "async_scheduling": None}
    draft = copy.deepcopy(DRAFTS.get(case.get("draft", "")))
    try:
        made = vllm_meta.engine_config(config, 2, draft=draft, **flags)
    except Exception as error:  # whatever vLLM stumbles over is the answer
        said = " ".join(str(error).split()).removeprefix("1 validation error for SpeculativeConfig ")
        return {"error": f"{type(error).__name__}: {said[:160]}"}
    found = made.speculative_config
    drafter = found.draft_model_config
    return {
        "method": found.method,
        "tokens": found.num_speculative_tokens,
        "slots": found.max_num_new_slots_for_drafting,
        "lookahead": made.num_lookahead_tokens,
        "async": made.scheduler_config.async_scheduling,
        **({"architecture": drafter.architectures[0]} if draft else {}),
    }


def keys() -> dict[str, Any]:
    """Every key, with its default."""
    from vllm.config.speculative import SpeculativeConfig

    fields = SpeculativeConfig.__dataclass_fields__
    default = {name: getattr(f.default, "default", f.default) for name, f in fields.items()}
    return {name: value for name, value in default.items() if not name.startswith("_")}


def feed_heads() -> list[str]:
    """Architectures whose classes hand out hidden states of layers within."""
    from vllm.model_executor.models.interfaces import supports_eagle3
    from vllm.model_executor.models.registry import _SPECULATIVE_DECODING_MODELS, ModelRegistry

    found = []
    for name, known in ModelRegistry.models.items():
        try:
            feeds = name not in _SPECULATIVE_DECODING_MODELS and supports_eagle3(known.load_model_cls())
            found += [name] if feeds else []
        except ImportError:
            continue
    return sorted(found)


def main() -> None:
    vllm_meta.platform()
    import vllm.config.speculative as speculative

    speculative.has_arctic_inference = lambda: True  # a package that suffix decoding needs
    fixture = FIXTURES / "architectures_vllm_0.32.json.xz"
    archived = json.loads(lzma.decompress(fixture.read_bytes()))
    known = {
        name: archived[told]["config"] if isinstance(told, str) else told for name, told in TARGETS.items()
    }
    said = [case | {"vllm": ask(case, known)} for case in cases()]
    text = json.dumps(
        {"keys": keys(), "feed_heads": feed_heads(), "targets": known, "drafts": DRAFTS, "cases": said},
        indent=1,
    )
    (FIXTURES / "speculation_vllm_0.32.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
