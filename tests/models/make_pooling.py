"""Asks vLLM itself for engines that embed or score: how it serves a config under flags, weights, the plan of the KV.

    python tests/models/make_pooling.py

Writes `tests/fixtures/pooling_vllm_0.32.json`. Configs are those of the fixture of architectures, a few layers deep.
Environment: see `vllm_meta.py`.
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
CATALOG = Path(__file__).resolve().parents[2] / "kvplan" / "catalog" / "models"
SIZES = (1, 2)
KV_BYTES = 20 << 30
AS_SERVED = {
    "enforce_eager": False,
    "max_num_batched_tokens": None,
    "max_num_seqs": None,
    "async_scheduling": None,
}
"""What `vllm_meta.engine_config` states for speed is left to vLLM here."""
RERANKER = {"classifier_from_token": ["no", "yes"], "method": "from_2_way_softmax"}
STEP = {"pooling_type": "STEP", "step_tag_id": 7}


def configs() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Name -> config, flags."""
    held = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))

    def of(name: str, **changes: Any) -> dict[str, Any]:
        return copy.deepcopy(held[name]["config"]) | changes

    prm = json.loads((CATALOG / "Qwen--Qwen2.5-Math-PRM-7B.json").read_text()) | {"num_hidden_layers": 4}
    rm = prm | {"architectures": ["Qwen2ForRewardModel"]}
    return {
        "PRM": (prm, {}),
        "PRM in 16 bits": (prm | {"head_dtype": "model"}, {}),
        "PRM by ALL": (prm, {"pooler_config": {"pooling_type": "ALL"}}),
        "PRM, chunked": (prm, {"enable_chunked_prefill": True}),
        "RM": (rm, {}),
        "RM generating": (rm, {"runner": "generate"}),
        "InternLM2 RM": (of("InternLM2ForCausalLM", architectures=["InternLM2ForRewardModel"]), {}),
        "Qwen3": (of("Qwen3ForCausalLM"), {}),
        "Qwen3 pooling": (of("Qwen3ForCausalLM"), {"runner": "pooling"}),
        "Qwen3 tied, classify": (of("Qwen3ForCausalLM", tie_word_embeddings=True), {"convert": "classify"}),
        "Qwen3 convert none": (of("Qwen3ForCausalLM"), {"runner": "pooling", "convert": "none"}),
        "Qwen3 MEAN": (of("Qwen3ForCausalLM"), {"runner": "pooling", "pooler_config": {"seq_pooling_type": "MEAN"}}),
        "Mistral model, as it is": (of("MistralForCausalLM", architectures=["MistralModel"]), {}),
        "Gemma2 model, as it is": (of("Gemma2ForCausalLM", architectures=["Gemma2Model"]), {}),
        "Qwen3 reranker": (of("Qwen3ForCausalLM", architectures=["Qwen3ForSequenceClassification"], **RERANKER), {}),
        "Qwen3 reranker, generate": (
            of("Qwen3ForCausalLM", architectures=["Qwen3ForSequenceClassification"]),
            {"runner": "generate"},
        ),
        "Qwen3Moe embed": (of("Qwen3MoeForCausalLM"), {"convert": "embed"}),
        "Qwen3Moe tokens": (
            of("Qwen3MoeForCausalLM", architectures=["Qwen3MoeForTokenClassification"], num_labels=5),
            {},
        ),
        "Mistral PRM": (of("MistralForCausalLM"), {"convert": "embed", "pooler_config": STEP}),
        "Mistral model": (of("MistralForCausalLM", architectures=["MistralModel"]), {"runner": "pooling"}),
        "Gemma2 model": (of("Gemma2ForCausalLM", architectures=["Gemma2Model"]), {"runner": "pooling"}),
        "Llama scorer": (of("LlamaForCausalLM", architectures=["LlamaForSequenceClassification"], num_labels=1), {}),
        "Mixtral scorer": (of("MixtralForCausalLM", architectures=["MixtralForSequenceClassification"]), {}),
        "Qwen2-VL embed": (of("Qwen2VLForConditionalGeneration"), {"runner": "pooling"}),
        "DeepSeek embed": (of("DeepseekV3ForCausalLM"), {"runner": "pooling"}),
        "Qwen3-Next embed": (of("Qwen3NextForCausalLM"), {"runner": "pooling"}),
        "Granite embed, eager": (of("GraniteForCausalLM"), {"runner": "pooling", "enforce_eager": True}),
        "Jina v5": (of("JinaEmbeddingsV5Model"), {}),
    }  # fmt: skip


def ask(config: dict[str, Any], flags: dict[str, Any], tp: int) -> dict[str, Any]:
    """What vLLM says of one; its refusal where it does not start."""
    try:
        made, model = vllm_meta.build(copy.deepcopy(config), tp, **(AS_SERVED | copy.deepcopy(flags)))
    except Exception as error:  # whatever vLLM stumbles over is the answer
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    parameters, rotary = vllm_meta.weights(model)
    told, pooler = made.model_config, made.model_config.pooler_config
    return {
        "runner": told.runner_type,
        "convert": told.convert_type,
        "pooling": [pooler.seq_pooling_type, pooler.tok_pooling_type] if pooler else None,
        "chunked": made.scheduler_config.enable_chunked_prefill,
        "caching": made.cache_config.enable_prefix_caching,
        "async": made.scheduler_config.async_scheduling,
        "tokens_of_a_step": made.scheduler_config.max_num_batched_tokens,
        "graphs": made.compilation_config.cudagraph_mode.name,
        "capture_sizes": len(made.compilation_config.cudagraph_capture_sizes or ()),
        "weights": parameters,
        "rotary": rotary,
        **vllm_meta.plan(made, KV_BYTES),
    }


def main() -> None:
    vllm_meta.platform()
    answers = {}
    for name, (config, flags) in configs().items():
        config.pop("_source", None)
        asked = {str(tp): ask(config, flags, tp) for tp in SIZES}
        answers[name] = {"config": config, "flags": flags, "vllm": asked}
        print(name, asked["1"], flush=True)
    (FIXTURES / "pooling_vllm_0.32.json").write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
