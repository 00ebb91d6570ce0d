"""Memory for LoRA adapters: vLLM takes it at start-up, for so many adapters of the highest rank.

Source: vLLM 0.32 `lora/layers`: for each matrix an A (rank x columns) and a B (rows x rank) per adapter, cut as the
matrix is; for the embedding and the head of families that allow it, a pair over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kvplan.ground.errors import KvplanError
from kvplan.models.modules import Cut, Module, layer_modules
from kvplan.models.spec import LayerSpec, ModelSpec
from kvplan.models.tensors import PARTS_OF
from kvplan.models.vision import vision_modules
from kvplan.models.weights import rank_cut, stage_spans

BOTH_ENDS = """
    Cosmos3ForConditionalGeneration Ernie4_5ForCausalLM Exaone4ForCausalLM Exaone4_5_ForConditionalGeneration
    ExaoneForCausalLM ExaoneMoEForCausalLM ExaoneMoeForCausalLM FalconH1ForCausalLM GlmAsrForConditionalGeneration
    Granite4VisionForConditionalGeneration GraniteForCausalLM GraniteMoeForCausalLM GraniteMoeHybridForCausalLM
    GraniteMoeSWAForCausalLM GraniteMoeSharedForCausalLM GraniteSWAForCausalLM GraniteSpeechForConditionalGeneration
    GraniteSpeechPlusForConditionalGeneration H2OVLChatModel HyperCLOVAXForCausalLM IQuestCoderForCausalLM
    InternLM3ForCausalLM InternS1ForConditionalGeneration InternS1ProForConditionalGeneration
    InternS2PreviewForConditionalGeneration IsaacForConditionalGeneration JambaForCausalLM K2HorizonForCausalLM
    KeyeForConditionalGeneration KeyeVL1_5ForConditionalGeneration LLaMAForCausalLM Lfm2ForCausalLM
    Lfm2MoeForCausalLM Lfm2VlForConditionalGeneration LightOnOCRForConditionalGeneration Llama4ForCausalLM
    Llama4ForConditionalGeneration LlamaForCausalLM Llama_Nemotron_Nano_VL LlavaForConditionalGeneration
    LlavaNextForConditionalGeneration LlavaNextVideoForConditionalGeneration LlavaOnevision2ForConditionalGeneration
    MiniCPM3ForCausalLM MiniCPMForCausalLM MiniCPMV MiniCPMV4_6ForConditionalGeneration
    MiniCPMV4_7ForConditionalGeneration MixtralForCausalLM NemotronForCausalLM NemotronHForCausalLM
    NemotronHPuzzleForCausalLM NemotronH_Nano_Omni_Reasoning_V3 NemotronH_Nano_VL_V2 NemotronH_Omni_Reasoning_V3
    NemotronH_Super_Omni_Reasoning_V3 PaddleOCRVLForConditionalGeneration Param2MoEForCausalLM Phi4ForCausalLMV
    PhiMoEForCausalLM QianfanOCRForConditionalGeneration Qwen3ASRForConditionalGeneration Qwen3ASRRealtimeGeneration
    Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration
    Qwen3_5ForCausalLM Qwen3_5ForConditionalGeneration Qwen3_5MoeForCausalLM Qwen3_5MoeForConditionalGeneration
    Qwen4ExpForCausalLM Qwen4ExpForConditionalGeneration SolarForCausalLM TeleChat2ForCausalLM TeleChat3ForCausalLM
    TeleFLMForCausalLM UltravoxModel VoxtralForConditionalGeneration
"""
"""Architectures whose classes adapt the embedding and the head too."""
ONE_END = """
    ArceeForCausalLM Cohere2ForCausalLM Cohere2VisionForConditionalGeneration CohereCompassForConditionalGeneration
    CohereForCausalLM CwmForCausalLM DeepseekV4ForCausalLM DeepseekV4ForConditionalGeneration FlexOlmoForCausalLM
    GlmForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM HunYuanVLForConditionalGeneration
    Jais2ForCausalLM JinaEmbeddingsV5Model MellumForCausalLM NanbeigeForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM
    OlmoForCausalLM Phi3ForCausalLM PhiForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM Starcoder2ForCausalLM
    VaultGemmaForCausalLM VibeVoiceAsrForConditionalGeneration
"""
"""And those that adapt the head alone."""
FUSED_EXPERTS = ("GptOss", "Qwen3VLMoe", "InternS1Pro", "Qwen3_5MoeForCond", "Qwen3OmniMoe")
"""Architecture prefixes whose experts' gate and up have one A between them (`is_3d_moe_weight`)."""
WITH_TOWERS = (
    *(
        "Blip2",
        "DotsOCR",
        "Gemma3ForCond",
        "Gemma4ForCond",
        "Glm4v",
        "Idefics3",
        "InternVLChat",
        "Keye",
        "Lfm2Vl",
    ),
    *("Llama4ForCond", "LlavaFor", "LlavaNext", "PaliGemma", "Pixtral", "Qwen2VL", "Qwen2_5_VL", "Qwen3ASR"),
    *("Qwen3OmniMoe", "Qwen3VL", "SmolVLM", "Ultravox"),
)
"""Architecture prefixes whose towers may be adapted too (`supports_tower_connector_lora`)."""


class Adapters(NamedTuple):
    """What the flags ask for, in vLLM's words."""

    max_loras: int = 1
    max_lora_rank: int = 16
    fully_sharded_loras: bool = False
    """Cut what is otherwise whole: ranks of A before matrices cut by rows, rows of B behind those cut by columns."""
    enable_moe_shared_loras: bool = False
    """A before all experts of a layer, and B behind them, once."""
    enable_mixed_moe_lora_format: bool = False
    """An A each for gate and up, whatever the class."""
    enable_tower_connector_lora: bool = False
    lora_target_modules: tuple[str, ...] = ()
    """Last segments of names; none: all."""
    itemsize: int = 2


def lora_bytes(
    model: ModelSpec,
    adapters: Adapters,
    *,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    pp_layer_partition: tuple[int, ...] = (),
    data_parallel_size: int = 1,
    enable_expert_parallel: bool = False,
    has_tower: bool = True,
    whole_tower: bool = False,
) -> int:
    """Bytes on the rank with most.

    Raises:
        KvplanError: experts spread whole and adapters cut over the same ranks; a rank that these do not divide.

    >>> from kvplan.models.load import load_model
    >>> lora_bytes(load_model("Llama-3.2-1B"), Adapters(max_loras=2)) // 2**20
    50
    """
    cut = rank_cut(tensor_parallel_size, data_parallel_size, enable_expert_parallel)
    if adapters.fully_sharded_loras:
        _check_cut(model, adapters, tensor_parallel_size, enable_expert_parallel)
    each = {layer: _layer_elements(model, layer, cut, adapters) for layer in set(model.layers)}
    spans = stage_spans(len(model.layers), pipeline_parallel_size, pp_layer_partition)
    elements = max(sum(each[layer] for layer in model.layers[first:last]) for first, last in spans)
    rank = adapters.max_lora_rank
    elements += _ends(model, adapters) * rank * (model.vocab_size + model.hidden_size)
    if adapters.enable_tower_connector_lora and has_tower and model.architecture.startswith(WITH_TOWERS):
        assert model.vision is not None
        tower = vision_modules(model.vision, 1 if whole_tower else tensor_parallel_size)
        elements += sum(
            m.copies * rank * (m.rows + m.cols) for m in tower if m.cols > 1 and "embed" not in m.name
        )
    return elements * adapters.max_loras * adapters.itemsize


def _ends(model: ModelSpec, adapters: Adapters) -> int:
    """Of embedding and head, those that are adapted."""
    ends: tuple[str, ...] = ("embed_tokens", "lm_head") if model.architecture in BOTH_ENDS.split() else ()
    ends = ("lm_head",) if model.architecture in ONE_END.split() else ends
    return sum(_is_target(name, adapters) for name in ends)


def _check_cut(model: ModelSpec, adapters: Adapters, tp: int, expert_parallel: bool) -> None:
    if model.is_moe and expert_parallel:
        raise KvplanError(
            "--fully-sharded-loras: vLLM does not cut adapters of experts that are spread whole; leave out "
            "--enable-expert-parallel or this"
        )
    if adapters.max_lora_rank % tp:
        raise KvplanError(
            f"--fully-sharded-loras: --max-lora-rank {adapters.max_lora_rank} does not divide by {tp} ranks"
        )


def _layer_elements(model: ModelSpec, layer: LayerSpec, cut: Cut, adapters: Adapters) -> int:
    whole = layer_modules(layer, model.hidden_size, Cut())
    modules = zip(layer_modules(layer, model.hidden_size, cut), whole, strict=True)
    adapted = [
        (m, w)
        for m, w in modules
        if (m.linear or m.role == "router")
        and m.cols > 1
        and _is_target(m.name, adapters, m.role == "expert")
    ]
    return sum(
        sum(_of_experts(model, m, cut, adapters))
        if m.role == "expert"
        else sum(_of_matrix(m, w, cut, adapters))
        for m, w in adapted
    )


def _is_target(name: str, adapters: Adapters, is_expert: bool = False) -> bool:
    """By its own name, or that of what vLLM fuses it into or with (`lora/utils.py: is_in_target_modules`)."""
    last = name.rpartition(".")[2]
    fused = PARTS_OF.get(last)
    names = (
        {last} if fused is None else {fused, *(part for part, whole in PARTS_OF.items() if whole == fused)}
    )
    targets = set(adapters.lora_target_modules)
    return not targets or bool(targets & ({"experts"} if is_expert else names))


def _of_matrix(m: Module, whole: Module, cut: Cut, adapters: Adapters) -> Iterator[int]:
    """Elements of A and B: fully sharded, A's ranks are cut before rows that are, B's rows behind columns that are."""
    rank, shards = adapters.max_lora_rank, cut.tp if adapters.fully_sharded_loras else 1
    by_cols = m.cols < whole.cols
    by_rows = not by_cols and (m.rows < whole.rows or m.name.endswith(("k_proj", "v_proj")))
    yield m.copies * m.cols * (rank // shards if by_rows else rank)
    yield m.copies * rank * (m.rows // shards if by_cols else m.rows)


def _of_experts(model: ModelSpec, m: Module, cut: Cut, adapters: Adapters) -> Iterator[int]:
    """Elements of A and B of one of an expert's matrices, over all experts on the rank."""
    rank, shards = adapters.max_lora_rank, cut.expert_tp if adapters.fully_sharded_loras else 1
    one = adapters.enable_moe_shared_loras
    fused = model.architecture.startswith(FUSED_EXPERTS) and not one
    fused = fused and not adapters.enable_mixed_moe_lora_format
    if m.name.endswith("down_proj"):
        yield m.copies * m.cols * rank
        yield (1 if one else m.copies) * rank * m.rows // shards
    else:
        if not (fused and m.name.endswith("gate_proj")):
            yield (1 if one else m.copies) * m.cols * rank // shards
        yield m.copies * rank * m.rows
