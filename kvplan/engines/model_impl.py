"""`--model-impl`: vLLM's own class of a model, or the one of transformers with vLLM's layers in the place of its own.

Under the latter a language model's weights and KV are mostly the same, but for rotary tables, which are not kept, and
routers, which are in 16 bits; a class without a plan for tensor parallelism is whole on each rank, towers too. Asked
of vLLM 0.32 architecture by architecture (`fixtures/transformers_vllm_0.32.json`): those below are planned, others are
refused in a line. Source:
`models/transformers/base.py`, `models/registry.py: _try_resolve_transformers`, `models/terratorch.py`.
"""

from __future__ import annotations

from dataclasses import replace

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.models.spec import LayerSpec, ModelSpec

_ALIKE = """
AXK1ForCausalLM ArceeForCausalLM Cohere2ForCausalLM Cohere2MoeForCausalLM
CohereForCausalLM CwmForCausalLM DeepseekV2ForCausalLM DeepseekV3ForCausalLM
Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM Exaone4ForCausalLM ExaoneMoeForCausalLM
FlexOlmoForCausalLM GPTBigCodeForCausalLM GPTNeoXForCausalLM Gemma2ForCausalLM
Gemma3ForCausalLM GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM
Glm4MoeLiteForCausalLM GlmForCausalLM GraniteForCausalLM GraniteMoeForCausalLM
GraniteMoeSWAForCausalLM GraniteMoeSharedForCausalLM GraniteSWAForCausalLM HYV3ForCausalLM
HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM HyperCLOVAXForCausalLM Jais2ForCausalLM
LlamaForCausalLM LongcatFlashForCausalLM MellumForCausalLM
MiniMaxM2ForCausalLM Ministral3ForCausalLM MistralForCausalLM MixtralForCausalLM
Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM OlmoeForCausalLM Phi3ForCausalLM
PhiForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM
SeedOssForCausalLM SmolLM3ForCausalLM StableLmForCausalLM Starcoder2ForCausalLM
VaultGemmaForCausalLM
"""
ALIKE = frozenset(_ALIKE.split())
"""Architectures whose weights and KV are the same by both."""
_ON_ONE_RANK = """
AfmoeForCausalLM DbrxForCausalLM GPT2LMHeadModel GptOssForCausalLM
Lfm2ForCausalLM NemotronForCausalLM OPTForCausalLM
"""
_SEEING_ON_ONE_RANK = """
Emu3ForConditionalGeneration Exaone4_5_ForConditionalGeneration Glm4vForConditionalGeneration
Glm4vMoeForConditionalGeneration GlmOcrForConditionalGeneration Idefics3ForConditionalGeneration
InternVLForConditionalGeneration LlavaOnevisionForConditionalGeneration Mistral3ForConditionalGeneration
MuseGlimmerForConditionalGeneration PaddleOCRVLForConditionalGeneration PaliGemmaForConditionalGeneration
Qwen2_5_VLForConditionalGeneration SmolVLMForConditionalGeneration
"""
_SEEING = """
AudioFlamingo3ForConditionalGeneration GlmAsrForConditionalGeneration GraniteSpeechForConditionalGeneration
GraniteSpeechPlusForConditionalGeneration HunYuanVLForConditionalGeneration Qwen2AudioForConditionalGeneration
Qwen2VLForConditionalGeneration Qwen3VLForConditionalGeneration VibeVoiceAsrForConditionalGeneration
"""
WITH_TOWERS = frozenset(_SEEING.split())
"""Architectures whose towers are whole on every rank, all else as by vLLM's own class."""
WITH_TOWERS_ON_ONE_RANK = frozenset(_SEEING_ON_ONE_RANK.split())
ALIKE_ON_ONE_RANK = frozenset(_ON_ONE_RANK.split()) | WITH_TOWERS_ON_ONE_RANK
"""Those that tensor parallelism cuts otherwise, or not at all."""
FP32_ROUTERS = ("Ernie4_5",)
"""Architectures whose class of transformers keeps its routers in 32 bits too (`_keep_in_fp32_modules`)."""


def as_implemented(model: ModelSpec, args: EngineArgs) -> ModelSpec:
    """The model as the implementation asked for holds it.

    Raises:
        KvplanError: one that vLLM does not start so, or whose weights or KV are others then.
    """
    if args.model_impl == "terratorch":
        raise KvplanError(
            "--model-impl terratorch: vLLM runs TerraTorch's models by it, which have no KV; leave it out"
        )
    if args.model_impl != "transformers":
        return model
    _check(model, args)
    return by_transformers(model)


def by_transformers(model: ModelSpec) -> ModelSpec:
    """The model as the class of transformers holds it: without rotary tables, most routers in 16 bits."""
    model = replace(model, rotary=(), rotary_until_0_31=())
    if model.architecture.startswith(FP32_ROUTERS):
        return model
    return replace(model, layers=tuple(_narrow_router(layer) for layer in model.layers))


def _narrow_router(layer: LayerSpec) -> LayerSpec:
    extras = (w._replace(itemsize=0) if w.name == "mlp.gate.idle" else w for w in layer.extras)
    return replace(layer, mlp=replace(layer.mlp, router_itemsize=0), extras=tuple(extras))


def _check(model: ModelSpec, args: EngineArgs) -> None:
    said, name = "--model-impl transformers", model.architecture
    if str((model.quantization or {}).get("quant_method")) in ("mxfp4", "gpt_oss_mxfp4"):
        raise KvplanError(f"{said}: vLLM's Transformers backend does not support MXFP4 yet")
    if args.enable_lora:
        raise KvplanError(f"{said}: not planned beside --enable-lora")
    if name not in ALIKE | ALIKE_ON_ONE_RANK | WITH_TOWERS:
        raise KvplanError(
            f"{said}: planned where vLLM holds the same weights and KV as by its own class; of {name} it holds others,"
            " or does not start it so"
        )
    if name in ALIKE_ON_ONE_RANK and args.tensor_parallel_size > 1:
        raise KvplanError(
            f"{said}: transformers' {name} is not cut over ranks as vLLM's is; planned on one rank alone"
        )
