"""Which architecture is read by which builder, and the parts of a config that all of them share.

An architecture without a builder is refused by name. Knows no engine and no bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvplan.models.class_switches import biases, ties
from kvplan.models.config import Keys
from kvplan.models.drafts import (
    BODIES_OF_EAGLE3,
    DFLASH,
    DSPARK,
    EAGLE,
    EAGLE3,
    EAGLE3_OF_LLAMA,
    EAGLE3_OF_QWEN3,
    GEMMA4_ASSISTANTS,
    HEADS,
    MEDUSA,
    eagle3_head,
    eagle_head,
)
from kvplan.models.families import dense, hybrid, latent, moe, unusual
from kvplan.models.families.block_drafts import medusa, qwen3_dflash, qwen3_dspark
from kvplan.models.families.common import Body
from kvplan.models.families.decoders import DECODERS, assumed_plain
from kvplan.models.families.multimodal import MULTIMODAL, molmo, molmo2, voxtral_realtime
from kvplan.models.names import (
    BY_MODEL_TYPE,
    BY_TRANSFORMERS,
    INNER,
    MINICPMV,
    TEXT_OF,
    TEXT_SECTIONS,
    UNHELD,
)
from kvplan.models.pooling import (
    check_encoder,
    head_itemsize,
    num_labels,
    pooled_class,
    score_converts,
    score_widths,
)
from kvplan.models.rope import (
    SHORT_MROPE,
    check_rope,
    longrope_original_len,
    max_model_len,
    rotary_tables,
    states_max_model_len,
    yarn_max_model_len,
)
from kvplan.models.spec import ModelSpec, Weight
from kvplan.models.vision import has_tower, vision_tower

ROWS = {**DECODERS, **MULTIMODAL}
DIFFUSION_GEMMA = "DiffusionGemmaForBlockDiffusion"
BUILDERS: dict[str, Callable[[Keys], Body]] = {
    "LlamaForCausalLM": dense.llama,
    **dict.fromkeys((*EAGLE3_OF_LLAMA, EAGLE), dense.llama),
    **dict.fromkeys(EAGLE3_OF_QWEN3, dense.qwen3),
    **dict.fromkeys(DSPARK, qwen3_dspark),
    **dict.fromkeys(DFLASH, qwen3_dflash),
    MEDUSA: medusa,
    "MistralForCausalLM": dense.mistral,
    "Mistral3ForConditionalGeneration": dense.mistral,
    "Phi3ForCausalLM": dense.phi3,
    "GraniteForCausalLM": dense.llama,
    "Qwen2ForCausalLM": dense.qwen2,
    "Qwen3ForCausalLM": dense.qwen3,
    "Qwen3VLForConditionalGeneration": dense.qwen3,
    "MiMoForCausalLM": dense.mimo,
    "GemmaForCausalLM": dense.gemma,
    "Gemma2ForCausalLM": dense.gemma2,
    "Gemma3ForCausalLM": dense.gemma3,
    "Gemma3ForConditionalGeneration": dense.gemma3,
    "Exaone4ForCausalLM": dense.exaone4,
    "Glm4ForCausalLM": dense.glm4,
    "DeciLMForCausalLM": dense.nemotron_nas,
    "MixtralForCausalLM": moe.mixtral,
    "Qwen2MoeForCausalLM": moe.qwen2_moe,
    "Qwen3MoeForCausalLM": moe.qwen3_moe,
    "Qwen3VLMoeForConditionalGeneration": moe.qwen3_moe,
    "InternS1ProForConditionalGeneration": moe.intern_s1_pro,
    "Glm4MoeForCausalLM": moe.glm4_moe,
    "MiniMaxM2ForCausalLM": moe.minimax_m2,
    "GraniteMoeForCausalLM": moe.granite_moe,
    "GraniteMoeSharedForCausalLM": moe.granite_moe,
    "GptOssForCausalLM": moe.gpt_oss,
    "Llama4ForCausalLM": moe.llama4,
    "Llama4ForConditionalGeneration": moe.llama4,
    "MiMoV2FlashForCausalLM": moe.mimo_v2,
    "MiMoV2ForCausalLM": moe.mimo_v2,
    "Gemma4ForCausalLM": moe.gemma4,
    "Gemma4ForConditionalGeneration": moe.gemma4,
    "Gemma4UnifiedForConditionalGeneration": moe.gemma4,
    **dict.fromkeys(GEMMA4_ASSISTANTS, moe.gemma4_assistant),
    DIFFUSION_GEMMA: moe.diffusion_gemma,
    "Ernie4_5_VLMoeForConditionalGeneration": unusual.ernie_vl,
    "DeepseekV2ForCausalLM": moe.deepseek,
    "DeepseekV3ForCausalLM": moe.deepseek,
    "Glm4MoeLiteForCausalLM": moe.deepseek,
    "KimiK25ForConditionalGeneration": moe.deepseek,
    "DeepseekV32ForCausalLM": moe.deepseek_sparse,
    "GlmMoeDsaForCausalLM": moe.deepseek_sparse,
    "Qwen3NextForCausalLM": hybrid.qwen3_next,
    "Qwen3_5ForCausalLM": hybrid.qwen3_next,
    "Qwen3_5ForConditionalGeneration": hybrid.qwen3_next,
    "Qwen3_5MoeForCausalLM": hybrid.qwen3_next,
    "Qwen3_5MoeForConditionalGeneration": hybrid.qwen3_next,
    "InternS2MobiusForConditionalGeneration": hybrid.intern_s2_mobius,
    "KimiLinearForCausalLM": hybrid.kimi_linear,
    "FalconH1ForCausalLM": hybrid.falcon_h1,
    "GraniteMoeHybridForCausalLM": hybrid.granite_hybrid,
    "NemotronHForCausalLM": hybrid.nemotron_h,
    "Lfm2ForCausalLM": hybrid.lfm2,
    "Lfm2MoeForCausalLM": hybrid.lfm2_moe,
    "NemotronHPuzzleForCausalLM": hybrid.nemotron_h,
    "MambaForCausalLM": hybrid.mamba,
    "FalconMambaForCausalLM": hybrid.mamba,
    "Mamba2ForCausalLM": hybrid.mamba2_only,
    "JambaForCausalLM": hybrid.jamba,
    "Zamba2ForCausalLM": hybrid.zamba2,
    "OlmoHybridForCausalLM": hybrid.olmo_hybrid,
    "BailingMoeV2_5ForCausalLM": hybrid.bailing_linear,
    "BailingMoeV3ForCausalLM": hybrid.bailing_v3,
    "Qwen4ExpForCausalLM": hybrid.qwen4,
    "Glm5NextForCausalLM": hybrid.glm5_next,
    "InklingForCausalLM": hybrid.inkling,
    "MiniMaxM3SparseForCausalLM": moe.minimax_m3,
    "DeepseekV4ForCausalLM": latent.deepseek_v4,
    "DeepseekV41ForCausalLM": latent.deepseek_v41,
    "Dots3NoteForCausalLM": latent.dots3_note,
    "AXK1ForCausalLM": latent.axk1,
    "PanguUltraMoEForCausalLM": latent.pangu_ultra,
    "SarvamMLAForCausalLM": latent.sarvam_mla,
    "MistralLarge3ForCausalLM": latent.mistral_large3,
    "HYV4ForCausalLM": latent.hunyuan4,
    "LongcatFlashForCausalLM": latent.longcat,
    "LongcatFlashNgramForCausalLM": latent.longcat_ngram,
    "MiniCPM3ForCausalLM": latent.minicpm3,
    "FalconForCausalLM": unusual.falcon,
    "Step3TextForCausalLM": unusual.step3,
    "Step3p5ForCausalLM": unusual.step3p5,
    "HrmTextForCausalLM": unusual.hrm_text,
    "IQuestLoopCoderForCausalLM": unusual.iquest_loop,
    "K2HorizonForCausalLM": unusual.k2_horizon,
    "PanguProMoEV2ForCausalLM": unusual.pangu_pro_v2,
    "Gemma3nForCausalLM": unusual.gemma3n,
    # reward models: the same body, another head
    "Qwen2ForRewardModel": dense.qwen2,
    "Qwen2ForProcessRewardModel": dense.qwen2,
    "Qwen2ForSequenceClassification": dense.qwen2,
    "Qwen3ForSequenceClassification": dense.qwen3,
    "LlamaForSequenceClassification": dense.llama,
    "Gemma2ForSequenceClassification": dense.gemma2,
    "JinaEmbeddingsV5Model": dense.jina_v5,
    "MolmoForCausalLM": molmo,
    "Molmo2ForConditionalGeneration": molmo2,
    "VoxtralRealtimeGeneration": voxtral_realtime,
    **{name: row.build for name, row in ROWS.items()},
}
"""vLLM's architecture names; what is not here is refused."""
KNOWN = frozenset({*BUILDERS, *TEXT_OF})
SENTENCES = "_sentence_pooling"
"""Key for how the checkpoint's sentence-transformers modules pool, which stand beside its config."""


DEFAULTS: dict[str, dict[str, object]] = {
    "Gemma3": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    },
    "Gemma4": {"global_head_dim": 512},
    "Glm4v": {"partial_rotary_factor": 0.5},
    "GlmOcr": {"partial_rotary_factor": 0.5},
    "Medusa": {"hidden_size": 4096, "vocab_size": 32001, "max_seq_len": 1 << 20},
    "OpenVLA": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    },
}
"""Keys that published configs of a family leave out, with the values of its config class."""

TIED_BY_DEFAULT = ("Gemma", "Lfm2", "FalconFor", "FalconMamba", "MambaFor", "Zamba2")
"""Families whose config class ties the embeddings unless told otherwise (architecture prefixes)."""

SET_BY_CLASS: dict[str, dict[str, object]] = {
    "Isaac": {"mrope_section": []},
    "NemotronH_Nano_Omni": {"mamba_ssm_cache_dtype": "auto"},
    "NemotronH_Omni": {"mamba_ssm_cache_dtype": "auto"},
    "NemotronH_Super_Omni": {"mamba_ssm_cache_dtype": "auto"},
}
"""Keys whose value vLLM 0.32's class sets itself, whatever the config says (architecture prefixes)."""

ORACLE = "weights and KV plan equal vLLM 0.32's own class and planner"
TEXT_ORACLE = f"{ORACLE}, language model alone"
BY_FORMULA = "its body is a family held to vLLM's class; this class itself was not run"


DTYPES = ("bfloat16", "float16", "float32")


def architectures() -> tuple[str, ...]:
    """Every architecture that is planned, sorted."""
    return tuple(sorted({*BUILDERS, *TEXT_OF}))


def how_checked(architecture: str) -> str:
    """How an architecture was checked; empty where it is not known."""
    if architecture not in BUILDERS and architecture not in TEXT_OF:
        return ""
    if architecture in UNHELD:
        return BY_FORMULA
    return TEXT_ORACLE if architecture in TEXT_OF and not has_tower(architecture) else ORACLE


def from_config(config: Mapping[str, object], name: str = "config.json", source: str = "") -> ModelSpec:
    """Read a Hugging Face config (already parsed) into a `ModelSpec`.

    Args:
        config: the object of a config.json; nested multimodal configs (`text_config`) too.
        name: how to call the model in answers and complaints.
        source: where the config came from.

    Raises:
        KvplanError: an unknown architecture or attention kind, a missing or contradictory key.
    """
    outer = Keys(name, config)
    architecture = find_architecture(outer)
    check_encoder(outer, architecture)
    named, (architecture, pools) = architecture, pooled_class(architecture, KNOWN)
    pools = pools or ("embed" if SENTENCES in outer else "")
    if architecture in BODIES_OF_EAGLE3 and "draft_vocab_size" in outer:
        architecture = f"Eagle3{architecture}"
    defaults = next((d for prefix, d in DEFAULTS.items() if architecture.startswith(prefix)), {})
    unread = next((d for prefix, d in SET_BY_CLASS.items() if architecture.startswith(prefix)), {})
    text = Keys(name, {**defaults, **config, **text_section(outer).raw, **unread})
    whole, architecture = architecture, text_architecture(outer, architecture)
    text = biases(text, architecture)
    check_rope(text)
    row = ROWS.get(architecture)
    known = architecture in BUILDERS
    row = row if known else assumed_plain(text)
    if row is None and not known:
        raise outer.error(f"architecture {architecture[:80]!r} is not supported: its attention is unknown")
    text = row.read(text) if row else text
    labels = num_labels(outer, text)
    try:
        body = row.build(text) if row else BUILDERS[architecture](text)
    except (OverflowError, RecursionError):
        raise outer.error("holds numbers or nesting beyond any model") from None
    model = ModelSpec(
        name=name,
        architecture=whole,
        assumed="" if known else "planned as a plain decoder",
        layers=body.layers,
        mtp_layers=body.mtp_layers,
        mtp=body.mtp,
        dspark=body.dspark,
        model_type=outer.text("model_type"),
        hidden_size=text.count("hidden_size"),
        vocab_size=text.count("vocab_size", high=1 << 28),
        max_model_len=max_model_len(text, outer.text("model_type")),
        max_model_len_stated=states_max_model_len(text),
        dtype=dtype(outer, text),
        extras=(*body.extras, *newline(whole, text)),
        sized_for=body.sized_for,
        final_norms=body.final_norms,
        lm_head_bias=body.lm_head_bias,
        tie_word_embeddings=ties(
            outer,
            text,
            whole,
            architecture,
            section=text_section(outer),
            default=row.tied if row else architecture.startswith(TIED_BY_DEFAULT),
        ),
        score_head=score_widths(named, pools, text.count("hidden_size"), labels),
        score_itemsize=head_itemsize(outer, dtype(outer, text)),
        score_converts=score_converts(named, outer, text),
        pools=pools,
        pooled_by=outer.text(SENTENCES),
        num_labels=labels,
        headless=pools == "embed",
        vision=vision_tower(outer, whole, text.count("hidden_size"), multimodal=whole in TEXT_OF),
        longrope_original_len=longrope_original_len(text),
        yarn_max_model_len=yarn_max_model_len(text),
        rotary=rotary_tables(text, architecture, body.layers)
        if (row is None or row.rotary) and whole not in BY_TRANSFORMERS
        else (),
        rotary_until_0_31=rotary_tables(text, architecture, body.layers, newest=False)
        if architecture.startswith(SHORT_MROPE)
        else (),
        quantization=quantization_section(outer, text),
        source=source,
        drafts_as=HEADS.get(architecture, ""),
        reads_hidden_size=text.count("target_hidden_size", default=text.count("hidden_size"))
        if architecture in (*DSPARK, *DFLASH, MEDUSA)
        else 0,
        shares_ends=architecture in (*DSPARK, *DFLASH, MEDUSA),
        draft_block=text.count("block_size", "dspark_block_size", default=0, low=0, high=64)
        if architecture in DSPARK
        else text.count("n_predict", default=0, low=0, high=64),
        canvas_length=text.count("canvas_length", default=256) if architecture == DIFFUSION_GEMMA else 0,
        backbone_hidden_size=text.count("backbone_hidden_size") if architecture in GEMMA4_ASSISTANTS else 0,
    )
    if architecture in EAGLE3:
        return eagle3_head(model, text)
    return eagle_head(model) if architecture == EAGLE else model


def quantization_section(outer: Keys, text: Keys) -> Mapping[str, object] | None:
    """The config's `quantization_config`, with DeepSeek V4's dtype of experts, which stands beside it.

    FP4 where none is told: vLLM 0.32 `models/deepseek_v4/quant_config.py: expert_dtype`.
    """
    found = outer.section("quantization_config").raw or text.section("quantization_config").raw
    if not found:
        return None
    is_v4 = text.text("model_type") in DEEPSEEK_V4 and found.get("quant_method") == "fp8"
    expert_dtype = text.text("expert_dtype", default="fp4" if is_v4 else "")
    if is_v4 and expert_dtype not in ("fp4", "fp8"):
        raise text.error("expert_dtype must be fp4 or fp8")
    return {**found, "expert_dtype": expert_dtype} if expert_dtype else found


DEEPSEEK_V4 = ("deepseek_v4", "deepseek_v4_text", "deepseek_v41", "deepseek_v41_text")
"""Model types whose FP8 vLLM reads by a class of their own."""


def text_section(outer: Keys) -> Keys:
    """The language model's part of a multimodal config; the whole config where it is not nested."""
    thinker = outer.section("thinker_config")
    if outer.texts("architectures")[:1] and (inner := INNER.get(outer.texts("architectures")[0])):
        return outer.section(inner[0]).section(inner[1])
    for k in (outer, thinker):
        for key in TEXT_SECTIONS:
            if key in k:
                return k.section(key)
    return thinker if "thinker_config" in outer else outer


def newline(architecture: str, text: Keys) -> tuple[Weight, ...]:
    """LLaVA's learned end of an image's row, which stays without the tower."""
    has = architecture.startswith(("LlavaNextForC", "LlavaOnevisionForC", "BeeForC", "RForC"))
    return (Weight("image_newline", text.count("hidden_size")),) if has else ()


def text_architecture(outer: Keys, architecture: str) -> str:
    """The language model's architecture: its own, or of a multimodal one as the table or the nested config says."""
    if architecture not in TEXT_OF:
        return architecture
    if TEXT_OF[architecture]:
        return TEXT_OF[architecture]
    if architecture in ("MiniCPMV", "MiniCPMO"):
        return _of_version(outer)
    text = text_section(outer)
    names = text.texts("architectures")
    if names and names[0] in BUILDERS:
        return names[0]
    kind = text.text("model_type")
    if kind in BY_MODEL_TYPE:
        return BY_MODEL_TYPE[kind]
    raise outer.error(f"architecture {architecture!r}: its language model {kind[:60]!r} is not known")


def _of_version(outer: Keys) -> str:
    """MiniCPM-V's language model, which only the version tells."""
    version = str(outer.raw.get("version"))
    if version not in MINICPMV:
        raise outer.error(f"version {version[:20]!r} of MiniCPMV is not known ({', '.join(MINICPMV)} are)")
    return MINICPMV[version]


def find_architecture(k: Keys) -> str:
    """The config's architecture, or that of its model type."""
    names = k.texts("architectures")
    model_type = k.text("model_type")
    if not names and (model_type == "medusa" or "medusa_num_heads" in k):
        return MEDUSA
    if not names and not model_type:
        raise k.error("architectures is missing")
    if names:
        eyes = model_type.startswith("mimo_v2") and bool(k.section("vision_config").raw)
        return "MiMoV2OmniForCausalLM" if eyes else names[0]  # as vLLM 0.32 reads MiMo-V2.5's config
    if model_type in BY_MODEL_TYPE:
        return BY_MODEL_TYPE[model_type]
    raise k.error(f"architectures is missing and model_type {model_type[:60]!r} is not known")


def dtype(outer: Keys, text: Keys) -> str:
    """The checkpoint's dtype; bfloat16 where the config does not say, as published checkpoints are."""
    for k in (outer, text):
        value = k.text("dtype", "torch_dtype").removeprefix("torch.")
        if value in DTYPES:
            return value
        if value:
            raise k.error(f"torch_dtype {value[:40]!r} is not one of {', '.join(DTYPES)}")
    return "bfloat16"
