"""Asks vLLM which memory it takes for LoRA adapters in every architecture.

    python tests/models/make_adapters.py [NAME ...]

Writes `tests/fixtures/adapters_vllm_0.32.json`: for the first case of each architecture in `make_architectures.py`'s
fixture whose class takes adapters, bytes of the stacked A and B of two adapters of rank 16 on one of two ranks: plain,
fully sharded, of experts in the shared and in the mixed format, with the tower's (on one rank of one), and of the
modules o_proj and down_proj alone; of `ON_OTHER_RANKS` plain and fully sharded on one of one and one of four. Null:
vLLM does not start so, or the class does not support LoRA. Named: those cases alone, into the file that is there.
Environment: see `vllm_meta.py`.
"""

from __future__ import annotations

import copy
import json
import lzma
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vllm_meta
from make_architectures import FIXTURE
from switches import first_cases

ADAPTERS = FIXTURE.with_name("adapters_vllm_0.32.json")
STACKS = ("lora_a_stacked", "lora_b_stacked", "full_weight_stacked", "full_bias_stacked")
"""The last two: whole heads of classifiers."""
OF_EXPERTS = ("w13_lora_a_stacked", "w13_lora_b_stacked", "w2_lora_a_stacked", "w2_lora_b_stacked")
"""Whose stacks of single matrices are views of these."""
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "fully_sharded": {"fully_sharded_loras": True},
    "shared": {"enable_moe_shared_loras": True},
    "mixed": {"enable_mixed_moe_lora_format": True},
    "tower": {"enable_tower_connector_lora": True},
    "targets": {"lora_target_modules": ["o_proj", "down_proj"]},
}
ON_OTHER_RANKS = """
    AfmoeForCausalLM ChatGLMModel DeepseekV3ForCausalLM Ernie4_5_VLMoeForConditionalGeneration FalconH1ForCausalLM
    Gemma4ForCausalLM Glm5NextForConditionalGeneration GraniteMoeHybridForCausalLM JambaForCausalLM Lfm2MoeForCausalLM
    LongcatFlashForCausalLM NemotronHForCausalLM PanguProMoEV2ForCausalLM Phi3ForCausalLM Qwen3_5ForCausalLM
    WhisperForConditionalGeneration
"""


def stacked(module: Any) -> int:
    """Bytes of one wrapped layer's A and B."""
    found = 0
    for name in OF_EXPERTS if OF_EXPERTS[0] in module.__dict__ else STACKS:
        tensors = module.__dict__.get(name, ())
        tensors = tensors if isinstance(tensors, tuple | list) else (tensors,)
        found += sum(t.numel() * t.element_size() for t in tensors)
    return int(found)


def prepare() -> None:
    """Kernels that are chosen after loading, and what wraps them, are not there."""
    import vllm.lora.layers.fused_moe as experts
    import vllm.lora.model_manager as manager
    from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    silent = vllm_meta._Silent()
    experts.FusedMoEKernelModularImpl = vllm_meta._Silent
    experts.FusedMoEModularMethod = lambda *parts: silent
    for kind in (FusedMoEMethodBase, *_below(FusedMoEMethodBase)):
        kind.supports_internal_mk, kind.is_monolithic = True, False
    RoutedExperts._ensure_moe_quant_config_init = lambda self: None
    experts.MoERunner._replace_quant_method = lambda self, method: None
    experts.FusedMoEWithLoRA._build_lora_context = lambda self: None
    experts.FusedMoEWithLoRA.set_mapping = lambda self, wrapper: None
    manager.MultiModalBudget = lambda *parts: types.SimpleNamespace(  # of items, which a processor would tell
        mm_max_items_per_prompt={"image": 1},
        mm_max_toks_per_item={"image": 1024},
        get_encoder_budget=lambda: 1024,
    )
    manager.get_punica_wrapper = lambda *args, **options: silent
    manager.LoRAModelManager._build_moe_ep_load_spec = lambda self: None


def _with_kernels(model: Any) -> None:
    from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase

    kernel = vllm_meta._Op()
    kernel.impl, kernel.supports_lora = vllm_meta._Silent(), lambda: True
    for module in model.modules():
        if isinstance(method := getattr(module, "quant_method", None), FusedMoEMethodBase):
            method.moe_kernel = kernel


def _below(kind: Any) -> list[Any]:
    return [made for below in kind.__subclasses__() for made in (below, *_below(below))]


REFUSED = -1
"""The class does not support LoRA: vLLM's worker ends."""


def ask(case: dict[str, Any], tp: int, **flags: Any) -> int | None:
    """Bytes on one rank; None where vLLM stumbles."""
    import torch
    import vllm.lora.model_manager as manager
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.models.interfaces import supports_lora

    lora = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 16}
    try:
        made, model = vllm_meta.build(
            copy.deepcopy(case["config"]),
            tp,
            beside=case.get("beside"),
            **case.get("flags", {}),
            **lora,
            **flags,
        )
        if not supports_lora(model):
            return REFUSED
        _with_kernels(model)
        with set_current_vllm_config(made):
            made_by = manager.LoRAModelManager(
                model,
                256,
                8192,
                made.model_config.get_vocab_size(),
                made.lora_config,
                torch.device("meta"),
                made,
            )
    except Exception as error:  # whatever vLLM stumbles over is the answer
        print("   ", flags, repr(error)[:200], flush=True)
        return None
    return sum(map(stacked, {id(m): m for m in made_by.modules.values()}.values()))


def main() -> None:
    cases = json.loads(lzma.decompress(FIXTURE.read_bytes()))
    vllm_meta.platform()
    prepare()
    named = sys.argv[1:]
    found: dict[str, Any] = json.loads(ADAPTERS.read_text()) if named else {}
    for name in named or first_cases(cases):
        case = cases[name]
        if case.get("device") == "cpu" or (plain := ask(case, 2)) is None:
            continue
        if plain == REFUSED:
            found[name] = None
            continue
        found[name] = {"plain": plain}
        text = json.dumps(case["config"])
        for what, flags in list(ASKED.items())[1:]:
            if what in ("shared", "mixed") and "experts" not in text:
                continue
            if what == "tower" and "vision" not in text and "audio" not in text:
                continue
            found[name][what] = ask(case, 1 if what == "tower" else 2, **flags)
        for tp in (1, 4) if name in ON_OTHER_RANKS.split() else ():
            for what in ("plain", "fully_sharded"):
                found[name][f"{what} on {tp}"] = ask(case, tp, **ASKED[what])
        print(name, found[name], flush=True)
    ADAPTERS.write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
