"""Which models vLLM lets draft for themselves (`method: mtp`, `dspark`), and how many tokens.

Source: vLLM 0.32 `config/speculative.py`, `SpeculativeConfig.hf_config_override`: it goes by the config's model type or
its first architecture, not by what layers a checkpoint holds. Other engines are not asked.
"""

from __future__ import annotations

from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.ground.errors import KvplanError
from kvplan.models.spec import ModelSpec

MODEL_TYPES = """
    dots3_note deepseek_v3 deepseek_v32 glm_moe_dsa deepseek_v4 pangu_ultra_moe kimi_k3 ernie4_5_moe nemotron_h
    nemotron_h_puzzle qwen3_next qwen4_exp qwen4_exp_text bailing_hybrid exaone_moe exaone4_5 exaone4_5_text qwen3_5
    qwen3_5_moe qwen3_5_text qwen3_5_moe_text intern_s2_preview interns2_mobius longcat_flash step3p5 step3p7 hy_v3
    hy_v4 inkling_mm_model inkling_model minimax_m3_vl glm5_next
"""
ARCHITECTURES = """
    MiMoForCausalLM MiMoV2ForCausalLM MiMoV2OmniForCausalLM MiMoV2FlashForCausalLM Glm4MoeForCausalLM
    Glm4MoeLiteForCausalLM GlmOcrForConditionalGeneration BailingMoeV3ForCausalLM BailingMoeV2_5ForCausalLM
    BailingMoeV3VLForConditionalGeneration Step3p5ForCausalLM Step3p7ForConditionalGeneration
    MiniMaxM3SparseForConditionalGeneration NemotronH_Super_Omni_Reasoning_V3 NemotronH_Omni_Reasoning_V3
"""
"""Model types, and first architectures, that vLLM turns into those of a drafting class."""
STEP_ENDS = (0, 19)
"""Since when Step's drafting class looks up types of layers that its config class cuts off (vLLM issue 40000)."""


def check_drafting(model: ModelSpec, args: EngineArgs, engine: EngineVersion) -> None:
    """Refuse drafting layers that vLLM has no class for, and numbers of tokens that they do not divide.

    Raises:
        KvplanError: with the engine's reason; a model without such layers is told where layers are laid out.
    """
    tokens, modules = args.num_speculative_tokens, model.num_mtp_modules
    if args.speculative_method == "dspark" and engine.engine != "vllm":
        raise KvplanError(f"method dspark is planned for vLLM alone, not for {engine}")
    if engine.engine != "vllm" or args.speculative_method != "mtp" or not tokens or not modules:
        return
    if not drafts_itself(model):
        raise KvplanError(
            f"vLLM 0.32 has no class that drafts for model type {model.model_type[:60]!r} (Unsupported speculative"
            f" method: 'mtp'), though {model.name} has the layers; ngram or a model beside can draft"
        )
    if model.architecture.startswith("Step3p") and engine.is_vllm(*STEP_ENDS):
        raise KvplanError(
            f"{engine} does not start {model.name} with its drafting layers: IndexError in layer_types, which are cut"
            " to the layers before them (vLLM issue 40000); ngram can draft"
        )
    if tokens > modules and tokens % modules:
        raise KvplanError(
            f"num_speculative_tokens {tokens} must be at most {modules}, or a multiple: {model.name} drafts with"
            f" {modules} modules"
        )


def check_layers(model: ModelSpec, method: str) -> None:
    """Refuse a method that takes the model's own layers where it has none of that kind."""
    if method == "mtp" and not model.mtp_layers:
        other = (
            "its checkpoint ships DSpark's, method dspark"
            if model.dspark
            else "use another speculative method"
        )
        raise KvplanError(f"{model.name} has no multi-token-prediction layers; {other}")
    if method == "dspark" and model.dspark is None:
        raise KvplanError(
            f"{model.name} has no layers of DSpark (dspark_target_layer_ids); use another speculative method"
        )


def drafts_itself(model: ModelSpec) -> bool:
    """Whether vLLM has a class for its drafting layers; of a config without model type nothing is known."""
    known = model.model_type in MODEL_TYPES.split() or model.architecture in ARCHITECTURES.split()
    return known or not model.model_type
