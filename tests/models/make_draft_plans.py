"""Asks vLLM itself what targets with drafts beside them weigh, and how their KV is laid out.

    python tests/models/make_draft_plans.py [CASE ...]

Writes `tests/fixtures/draft_plans_vllm_0.32.json`, which `tests/models/test_drafts.py` holds kvplan to. Environment:
see `vllm_meta.py`.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vllm_meta
from make_architectures import ask

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SIZES = (1, 2, 8)
BODY = {
    "dtype": "bfloat16", "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40960, "tie_word_embeddings": False, "attention_bias": False, "hidden_act": "silu",
}  # fmt: skip
FP8 = {
    "quantization_config": {
        "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token",
                                  "dynamic": True},
        }},
    }
}  # fmt: skip


def draft(hidden: int, vocab: int, layers: int, kind: str = "qwen3", **keys: Any) -> dict[str, Any]:
    """A draft's config."""
    name = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[kind]
    sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "vocab_size": vocab}
    return {"architectures": [name], "model_type": kind, **BODY, **sizes, "num_hidden_layers": layers, **keys}


def dflash(hidden: int, vocab: int, layers: int = 3, **keys: Any) -> dict[str, Any]:
    """DFlash, as z-lab's checkpoints say it (Qwen3-4B-DFlash-b16, Qwen3.5-122B-A10B-DFlash)."""
    inner = {"mask_token_id": 1, "target_layer_ids": [0, 2], **keys.pop("dflash_config", {})}
    made = {"architectures": ["DFlashDraftModel"], "block_size": 16, "dflash_config": inner}
    return draft(hidden, vocab, layers, **(made | keys))


WINDOWS = {"use_swa": True, "swa_window_size": 1024}
MIXED = ["full_attention", "sliding_attention", "sliding_attention"]
SLIDING = {"use_sliding_window": True, "sliding_window": 2048, "max_window_layers": 1}
MEDUSA = {
    "model_type": "medusa",
    "hidden_size": 4096,
    "vocab_size": 151936,
    "num_heads": 5,
    "num_hidden_layers": 1,
}
QWEN3, LLAMA, HYBRID, GPT_OSS = (
    "Qwen3ForCausalLM",
    "LlamaForCausalLM",
    "Qwen3NextForCausalLM",
    "GptOssForCausalLM",
)
IN_STEP = {"async_scheduling": False}
K15, K3 = {"method": "dflash", "num_speculative_tokens": 15}, {"num_speculative_tokens": 3}
EXTRACT = {
    "method": "extract_hidden_states",
    "num_speculative_tokens": 1,
    "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 3]}},
}
EAGLE3 = {"method": "eagle3", **K3}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "dflash": (QWEN3, dflash(4096, 151936), K15, {}),
    "dflash, all windows, with sinks": (
        QWEN3,
        dflash(4096, 151936, dflash_config=WINDOWS | {"attention_sink_bias": True}),
        K15,
        {},
    ),
    "dflash, some windows": (QWEN3, dflash(4096, 151936, layer_types=MIXED, **SLIDING), K15, {}),
    "dflash, windows by the config class": (QWEN3, dflash(4096, 151936, **SLIDING), K15, {}),
    "dflash of few words, with biases": (
        QWEN3,
        dflash(4096, 151936, draft_vocab_size=32000, attention_bias=True),
        K15,
        {},
    ),
    "dflash without states": (
        QWEN3,
        dflash(4096, 151936, dflash_config={"use_aux_hidden_state": False}),
        K15,
        {},
    ),
    "dflash in fp8": (QWEN3, dflash(4096, 151936, **FP8), K15, {}),
    "dflash, fp8 KV of its own": (QWEN3, dflash(4096, 151936), K15 | {"kv_cache_dtype": "fp8"}, {}),
    "dflash beside windows": (GPT_OSS, dflash(2880, 201088), K15, {}),
    "dflash of windows beside windows": (
        GPT_OSS,
        dflash(2880, 201088, dflash_config=WINDOWS | {"swa_window_size": 128}),
        K15,
        {},
    ),
    "dflash beside states": (HYBRID, dflash(2048, 151936), K15, {}),
    "medusa": (QWEN3, MEDUSA, {"method": "medusa", "num_speculative_tokens": 4}, IN_STEP),
    "medusa with biases": (
        QWEN3,
        MEDUSA | {"medusa_fc_bias": True, "num_hidden_layers": 2},
        {"method": "medusa", "num_speculative_tokens": 2},
        IN_STEP,
    ),
    "eagle": (LLAMA, draft(4096, 32000, 1, "llama"), {"method": "eagle", **K3}, {}),
    "eagle, kernels of its own": (
        LLAMA,
        draft(4096, 32000, 1, "llama"),
        {"method": "eagle", "attention_backend": "FLASHINFER", **K3},
        {"block_size": 16},
    ),
    "eagle3 of a plain llama": (LLAMA, draft(4096, 32000, 1, "llama"), EAGLE3, {}),
    "eagle3 of a plain qwen3": (QWEN3, draft(4096, 151936, 1), EAGLE3, {}),
    "eagle3 that reads two states": (
        LLAMA,
        draft(
            4096, 32000, 1, "llama", draft_vocab_size=16000,
            architectures=["LlamaForCausalLMEagle3"], num_aux_hidden_states=2,
        ),
        EAGLE3,
        {},
    ),
    "eagle3 with norms of states": (
        LLAMA,
        draft(
            4096, 32000, 2, "llama", draft_vocab_size=16000,
            architectures=["LlamaForCausalLMEagle3"], fc_norm=True, norm_before_fc=True,
            eagle_config={"eagle_aux_hidden_state_layer_ids": [0, 1, 2, 3]},
        ),
        EAGLE3,
        {},
    ),
    "eagle3 with biases, of a qwen3": (
        QWEN3,
        draft(
            4096, 151936, 1, draft_vocab_size=16000,
            architectures=["Eagle3Qwen3ForCausalLM"], attention_bias=True,
        ),
        EAGLE3,
        {},
    ),
    "eagle3 without states": (
        LLAMA,
        draft(
            4096, 32000, 1, "llama", architectures=["LlamaForCausalLMEagle3"],
            eagle_config={"use_aux_hidden_state": False},
        ),
        EAGLE3,
        {},
    ),
    "eagle3 in fp8": (
        LLAMA,
        draft(4096, 32000, 1, "llama", architectures=["LlamaForCausalLMEagle3"], **FP8),
        EAGLE3,
        {},
    ),
    "a model": (QWEN3, draft(1024, 151936, 2), K3, {}),
    "a model, fp8 KV of its own": (QWEN3, draft(1024, 151936, 2), K3 | {"kv_cache_dtype": "fp8"}, {}),
    "a model, 16-bit KV of its own": (
        QWEN3,
        draft(1024, 151936, 2),
        K3 | {"kv_cache_dtype": "bfloat16"},
        {"kv_cache_dtype": "fp8"},
    ),
    "states extracted": (QWEN3, {}, EXTRACT, {}),
    "states extracted, fp8 KV": (LLAMA, {}, EXTRACT, {"kv_cache_dtype": "fp8"}),
    "mtp, 16-bit KV of its own": (
        HYBRID,
        {},
        {"method": "mtp", "num_speculative_tokens": 1, "kv_cache_dtype": "bfloat16"},
        {"kv_cache_dtype": "fp8"},
    ),
}  # fmt: skip
"""Target, draft, --speculative-config, other flags."""


def main() -> None:
    vllm_meta.platform()
    path = FIXTURES / "draft_plans_vllm_0.32.json"
    known = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))
    said: dict[str, Any] = json.loads(path.read_text()) if sys.argv[1:] else {}
    for name, (target, config, told, flags) in CASES.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        case = {"config": known[target]["config"], "flags": {"speculative_config": told, **flags}}
        case |= {"draft": config} if config else {}
        said[name] = case | {"vllm": {str(tp): ask(case, tp) for tp in SIZES}}
        print(name, said[name]["vllm"], flush=True)
    path.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
