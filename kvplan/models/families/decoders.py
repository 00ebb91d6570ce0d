"""Plain decoders, declared: a family is a row that says where it differs from Llama.

Attention over all tokens or windows, then an MLP or experts, in every layer. A family that needs more than a row has a
builder of its own in `dense`, `moe`, `latent` or `hybrid`. Checked against vLLM 0.32's classes
(`tests/models/test_architectures.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from kvplan.models.config import Keys
from kvplan.models.families.common import (
    NO_MLP,
    Body,
    by_layer_type,
    gqa,
    mtp,
    num_layers,
    stack,
    windowed,
)
from kvplan.models.spec import AttentionKind, AttentionSpec, MlpSpec, MtpSpec, Weight

Switch = bool | str
"""Always, never, or the config's key that says so."""


class Experts(NamedTuple):
    """A mixture of experts: which keys say how many and how wide, and which layers have them."""

    number: str = "num_experts"
    top: str = "num_experts_per_tok"
    width: str = "moe_intermediate_size"
    shared: str = ""
    """Key of the number of shared experts; empty: none, or as `shared_width` says."""
    shared_width: str = ""
    """Key of the width of one shared expert, of all of them together where `shared` is empty; empty: as `width`."""
    shared_once: bool = False
    """`shared_width` is that of all shared experts together, however many."""
    dense: str = "first_k_dense_replace"
    """Key of the number of layers before the first one with experts."""
    every: str = "moe_layer_freq"
    """Key of the period of layers with experts."""
    matrices: int = 3
    correction: Switch = False
    """A correction of each expert's score."""
    itemsize: int = 0
    """Bytes of a router weight; 0: the model's dtype's."""


class PlainDecoder(NamedTuple):
    """Where a family differs from Llama."""

    keys: Mapping[str, str] = {}
    """Usual key -> the family's name of it, `section.key` where a section holds it."""
    defaults: Mapping[str, object] = {}
    """Values of its config class, for keys that configs leave out."""
    bias: Switch = "attention_bias"
    """Biases of Q, K and V."""
    out_bias: Switch = False
    mlp_bias: Switch = "mlp_bias"
    qk_norm: str = ""
    """Norms of Q and K: none, head, all, whole, or the key that turns on norms per head."""
    gated: Switch = False
    sinks: bool = False
    matrices: int = 3
    """3 for a gated MLP, 2 for up and down."""
    whole_mlp: bool = False
    """Tensor parallelism leaves the MLP whole on every rank."""
    experts: Experts | None = None
    dense_width: tuple[str, ...] = ("intermediate_size",)
    """Keys of the width of layers without experts, the first that the config has."""
    norms: int = 2
    layernorm: bool = False
    """Norms have biases too."""
    wide: bool = False
    """An MLP whose width the config leaves out is four times the hidden size."""
    final_norms: int = 1
    window: bool = False
    """A bare `sliding_window` holds for all layers; else only `layer_types` say so."""
    window_adds: int = 0
    """Tokens the engine adds to the config's window."""
    rotary: bool = True
    """The engine keeps a table of cosines; its bridge to transformers' classes does not."""
    tied: bool = False
    """The config class ties the embeddings unless told otherwise."""
    head_bias: Switch = False
    dense_drafts: bool = False
    """Layers of multi-token prediction are as the first layer, not as the last."""
    mtp: MtpSpec = MtpSpec()
    """What stands around those layers."""
    extras: Callable[[Keys], tuple[Weight, ...]] = lambda k: ()
    """What each layer has besides."""
    around: Callable[[Keys], tuple[Weight, ...]] = lambda k: ()
    """What stands beside the layers."""
    attends: Callable[[Keys], int] | None = None
    """How many tokens an encoder makes of the longest item, which every layer attends to; None: no encoder-decoder."""
    heads_per_layer: str = ""
    """Key of each layer's number of heads, where layers differ."""

    def read(self, k: Keys) -> Keys:
        """The config under the usual names."""
        renamed = {
            usual: found for usual, theirs in self.keys.items() if (found := _nested(k, theirs)) is not None
        }
        read = Keys(k.name, {**self.defaults, **k.raw, **renamed})
        if self.wide and "intermediate_size" not in read:
            return Keys(k.name, {**read.raw, "intermediate_size": 4 * read.count("hidden_size")})
        return read

    def build(self, k: Keys) -> Body:
        """The layers."""
        heads = k.counts(self.heads_per_layer)
        if not heads:
            return self._build(k)
        if len(heads) != num_layers(k):
            raise k.error(f"{self.heads_per_layer} must have num_hidden_layers = {num_layers(k)} entries")
        made = {h: self._build(Keys(k.name, {**k.raw, "num_attention_heads": h})) for h in set(heads)}
        layers = tuple(made[h].layers[i] for i, h in enumerate(heads))
        return made[heads[-1]]._replace(layers=layers)

    def _build(self, k: Keys) -> Body:
        n = num_layers(k)
        attention = gqa(
            k,
            bias=_on(k, self.bias),
            out_bias=_on(k, self.out_bias),
            qk_norm=self._norms_of_qk(k),
            gated=_on(k, self.gated),
            sinks=self.sinks,
        )
        size = (2 if self.layernorm else 1) * self.norms
        extras = (*self.extras(k), *(_whole_mlp(k) if self.whole_mlp else ()))
        mlps = [NO_MLP] * n if self.whole_mlp else self._mlps(k, n)
        layers = stack(k, self._attentions(k, attention, n), mlps, size, extras)
        if self.attends:
            beside = replace(attention, kind=AttentionKind.CROSS, window=self.attends(k))
            layers = tuple(replace(layer, beside=beside) for layer in layers)
        return Body(
            layers,
            mtp(k, layers[0] if self.dense_drafts else layers[-1]),
            self.mtp,
            extras=self.around(k),
            final_norms=2 if self.layernorm else self.final_norms,
            lm_head_bias=_on(k, self.head_bias),
        )

    def _norms_of_qk(self, k: Keys) -> str:
        if self.qk_norm in ("", "head", "all", "whole"):
            return self.qk_norm
        switch, _, kind = self.qk_norm.partition("=")
        return (kind or "head") if k.flag(switch) else ""

    def _attentions(self, k: Keys, attention: AttentionSpec, n: int) -> list[AttentionSpec]:
        types = k.per_layer("layer_types", n)
        if types and "sliding_window" in k:
            k = Keys(k.name, {**k.raw, "sliding_window": k.count("sliding_window") + self.window_adds})
            return by_layer_type(k, attention, types)
        if self.window and k.count("sliding_window", default=0, low=0):
            return [windowed(k, attention)] * n
        return [attention] * n

    def _mlps(self, k: Keys, n: int) -> list[MlpSpec]:
        bias = _on(k, self.mlp_bias)
        if self.experts is None:
            return [MlpSpec(k.count("intermediate_size"), self.matrices, bias=bias)] * n
        moe, sparse = routed(k, self.experts), layers_with_experts(k, self.experts, n)
        dense = moe if all(sparse) else MlpSpec(k.count(*self.dense_width), self.matrices, bias=bias)
        return [moe if s else dense for s in sparse]


def _nested(k: Keys, key: str) -> object:
    """The value of a key, `section.key` where a section of the config holds it; None where absent."""
    *sections, inner = key.split(".")
    for section in sections:
        k = k.section(section)
    return k.raw.get(inner)


def _on(k: Keys, switch: Switch) -> bool:
    return k.flag(switch) if isinstance(switch, str) else switch


def routed(k: Keys, e: Experts) -> MlpSpec:
    """A layer's experts."""
    width, number = k.count(e.width), k.count(e.number, high=1 << 16)
    top = k.count(e.top, high=1 << 16)
    if top > number:
        raise k.error(f"{e.top} {top} is more than the {number} experts")
    return MlpSpec(
        width,
        e.matrices,
        num_experts=number,
        experts_per_token=top,
        shared_intermediate_size=_shared(k, e, width),
        router_correction=_on(k, e.correction),
        router_itemsize=e.itemsize,
    )


def _shared(k: Keys, e: Experts, width: int) -> int:
    """Summed width of the experts that every token visits."""
    each = k.count(e.shared_width, default=0 if not e.shared else width, low=0) if e.shared_width else width
    if not e.shared:
        return each if e.shared_width else 0
    number = k.count(e.shared, default=0, low=0, high=1 << 16)
    return each * (min(number, 1) if e.shared_once else number)


def layers_with_experts(k: Keys, e: Experts, n: int) -> list[bool]:
    """Whether each layer has experts: as `mlp_layer_types` lists, or from the first sparse layer on."""
    if types := k.per_layer("mlp_layer_types", n):
        if unknown := set(types) - {"dense", "sparse"}:
            raise k.error(f"mlp_layer_types: unknown kind {sorted(unknown)[0]!r}")
        return [kind == "sparse" for kind in types]
    first, every = k.count(e.dense, default=0, low=0), k.count(e.every, default=1)
    return [i >= first and i % every == 0 for i in range(n)]


# ---- what some families have besides


def _whole_mlp(k: Keys) -> tuple[Weight, ...]:
    """Up and down with biases, on every rank."""
    hidden, width = k.count("hidden_size"), k.count("intermediate_size")
    return (
        Weight("mlp.up_proj", width, hidden, bias=True, linear=True),
        Weight("mlp.down_proj", hidden, width, bias=True, linear=True),
    )


def _gate(k: Keys) -> tuple[Weight, ...]:
    """Laguna: one gate per head (`true` or `per-head`), or one per element of every head."""
    if k.raw.get("gating") in (None, False):
        return ()
    each = 1 if k.raw["gating"] in (True, "per-head") else k.count("head_dim")
    rows = k.count("num_attention_heads") * each
    return (Weight("self_attn.g_proj", rows, k.count("hidden_size"), cut="rows", linear=True),)


def _norm_biases(k: Keys) -> tuple[Weight, ...]:
    """Ling 2: the norms of Q and K have biases."""
    return (Weight("self_attn.qk_norm_bias", 2 * k.count("head_dim")),) if k.flag("use_qk_norm") else ()


def _positions(offset: int = 0) -> Callable[[Keys], tuple[Weight, ...]]:
    """Learned positions, `offset` more than the context."""

    def around(k: Keys) -> tuple[Weight, ...]:
        rows = k.count("max_position_embeddings") + offset
        return (Weight("embed_positions", rows, k.count("hidden_size")),)

    return around


GPT2_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}
BIASED = PlainDecoder(bias=True, out_bias=True, mlp_bias=True, matrices=2, layernorm=True)
"""GPT-2's shape: biases everywhere, an MLP of two matrices."""
SWITCHED = BIASED._replace(
    defaults={"attention_bias": True, "mlp_bias": True},
    bias="attention_bias",
    out_bias="attention_bias",
    mlp_bias="mlp_bias",
)
"""The same, unless the config says otherwise."""
OPTIONAL_BIAS = PlainDecoder(out_bias="attention_bias")

DECODERS: dict[str, PlainDecoder] = {
    "ArceeForCausalLM": PlainDecoder(matrices=2, rotary=False),
    "ApertusForCausalLM": PlainDecoder(matrices=2, qk_norm="head"),
    "CohereForCausalLM": PlainDecoder(norms=1, tied=True, qk_norm="use_qk_norm=all"),
    "Cohere2ForCausalLM": PlainDecoder(norms=1, tied=True, window_adds=1),
    "CwmForCausalLM": PlainDecoder(rotary=False),
    "Ernie4_5ForCausalLM": PlainDecoder(tied=True),
    "ExaoneForCausalLM": PlainDecoder(keys={"num_hidden_layers": "num_layers"}),
    "GlmForCausalLM": PlainDecoder(rotary=False),
    "GPTJForCausalLM": PlainDecoder(
        GPT2_KEYS, bias=False, mlp_bias=True, matrices=2, layernorm=True, norms=1, wide=True, head_bias=True
    ),
    "GPTNeoXForCausalLM": SWITCHED._replace(mlp_bias=True, rotary=False),
    "GraniteSWAForCausalLM": PlainDecoder(sinks=True),
    "HunYuanDenseV1ForCausalLM": PlainDecoder(qk_norm="head", rotary=False),
    "HyperCLOVAXForCausalLM": PlainDecoder(norms=4),
    "InternLM2ForCausalLM": PlainDecoder(),
    "InternLM3ForCausalLM": PlainDecoder(bias="qkv_bias", out_bias="bias"),
    "IQuestCoderForCausalLM": OPTIONAL_BIAS,
    "Jais2ForCausalLM": SWITCHED._replace(rotary=False),
    "LLaMAForCausalLM": OPTIONAL_BIAS,
    "MiniCPMForCausalLM": PlainDecoder(tied=True),
    "Ministral3ForCausalLM": PlainDecoder(window=True),
    "MuseGlimmerForCausalLM": PlainDecoder(
        defaults={"use_attn_output_gate": True}, norms=4, gated="use_attn_output_gate"
    ),
    "NanbeigeForCausalLM": PlainDecoder(rotary=False),
    "NemotronForCausalLM": PlainDecoder(matrices=2, layernorm=True),
    "OlmoForCausalLM": PlainDecoder(norms=0, final_norms=0, rotary=False),
    "Olmo2ForCausalLM": PlainDecoder(qk_norm="whole", rotary=False),
    "Olmo3ForCausalLM": PlainDecoder(qk_norm="whole", rotary=False),
    "OrionForCausalLM": PlainDecoder(layernorm=True),
    "PanguEmbeddedForCausalLM": PlainDecoder(bias="bias", out_bias="bias"),
    "PhiForCausalLM": BIASED._replace(norms=1, rotary=False),
    "Plamo3ForCausalLM": PlainDecoder(norms=4, qk_norm="head"),
    "Rnj1ForCausalLM": PlainDecoder(norms=4, qk_norm="head"),
    "SeedOssForCausalLM": PlainDecoder(out_bias="attention_out_bias", rotary=False),
    "SmolLM3ForCausalLM": PlainDecoder(rotary=False, tied=True),
    "SolarForCausalLM": OPTIONAL_BIAS,
    "XverseForCausalLM": PlainDecoder(),
    "Step1ForCausalLM": PlainDecoder({"num_key_value_heads": "num_attention_groups"}, rotary=False),
    "StableLmForCausalLM": PlainDecoder(bias="use_qkv_bias", layernorm=True),
    "Starcoder2ForCausalLM": BIASED._replace(
        defaults={"use_bias": True},
        bias="use_bias",
        out_bias="use_bias",
        mlp_bias="use_bias",
        rotary=False,
        tied=True,
    ),
    "TeleChat2ForCausalLM": PlainDecoder(
        {
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "intermediate_size": "ffn_hidden_size",
        },
        out_bias=True,
        extras=lambda k: (Weight("mlp.down_proj_bias", k.count("hidden_size")),),
    ),
    "TeleChat3ForCausalLM": OPTIONAL_BIAS,
    "TeleFLMForCausalLM": OPTIONAL_BIAS,
    "VaultGemmaForCausalLM": PlainDecoder(rotary=False, tied=True),
    "BloomForCausalLM": BIASED._replace(
        keys={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embed"},
        around=lambda k: (Weight("embed_norm", 2 * k.count("hidden_size")),),
        wide=True,
        rotary=False,
        tied=True,
    ),
    "ChatGLMModel": PlainDecoder(
        {
            "num_hidden_layers": "num_layers",
            "intermediate_size": "ffn_hidden_size",
            "num_key_value_heads": "multi_query_group_num",
            "vocab_size": "padded_vocab_size",
            "max_position_embeddings": "seq_length",
        },
        {"partial_rotary_factor": 0.5},
        bias="add_qkv_bias",
        out_bias="add_bias_linear",
        mlp_bias="add_bias_linear",
    ),
    # learned positions
    "GPT2LMHeadModel": BIASED._replace(
        keys=GPT2_KEYS, around=_positions(), wide=True, rotary=False, tied=True
    ),
    "GPTBigCodeForCausalLM": BIASED._replace(
        keys=GPT2_KEYS, around=_positions(), wide=True, whole_mlp=True, rotary=False, tied=True
    ),
    "OPTForCausalLM": BIASED._replace(
        keys={"intermediate_size": "ffn_dim"},
        defaults={"enable_bias": True},
        bias="enable_bias",
        out_bias="enable_bias",
        mlp_bias="enable_bias",
        around=_positions(2),
        rotary=False,
        tied=True,
    ),
    # experts
    "AfmoeForCausalLM": PlainDecoder(
        norms=4,
        qk_norm="head",
        gated=True,
        experts=Experts(shared="num_shared_experts", dense="num_dense_layers", correction=True, itemsize=4),
    ),
    "AriaTextForCausalLM": PlainDecoder(
        experts=Experts("moe_num_experts", "moe_topk", "intermediate_size", shared="moe_num_shared_experts")
    ),
    "BailingMoeForCausalLM": PlainDecoder(
        bias="use_qkv_bias",
        experts=Experts(shared="num_shared_experts", correction="moe_router_enable_expert_bias"),
    ),
    "BailingMoeV2ForCausalLM": PlainDecoder(
        bias="use_qkv_bias",
        qk_norm="use_qk_norm",
        extras=_norm_biases,
        experts=Experts(
            shared="num_shared_experts",
            shared_width="moe_shared_expert_intermediate_size",
            correction="moe_router_enable_expert_bias",
            itemsize=4,
        ),
    ),
    "Cohere2MoeForCausalLM": PlainDecoder(
        norms=1,
        tied=True,
        window_adds=1,
        experts=Experts(width="intermediate_size"),
        dense_width=("prefix_dense_intermediate_size", "intermediate_size"),
    ),
    "DbrxForCausalLM": PlainDecoder(
        {
            "hidden_size": "d_model",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "max_position_embeddings": "max_seq_len",
            "num_key_value_heads": "attn_config.kv_n_heads",
            "intermediate_size": "ffn_config.ffn_hidden_size",
            "num_experts": "ffn_config.moe_num_experts",
            "num_experts_per_tok": "ffn_config.moe_top_k",
        },
        experts=Experts(width="intermediate_size"),
    ),
    "DeepseekForCausalLM": PlainDecoder(experts=Experts("n_routed_experts", shared="n_shared_experts")),
    "Ernie4_5_MoeForCausalLM": PlainDecoder(
        bias="use_bias",
        out_bias="use_bias",
        tied=True,
        dense_drafts=True,
        mtp=MtpSpec(own_rotary=True),
        experts=Experts(
            "moe_num_experts",
            "moe_k",
            shared="moe_num_shared_experts",
            dense="moe_layer_start_index",
            correction=True,
            itemsize=4,
        ),
    ),
    "ExaoneMoeForCausalLM": PlainDecoder(
        qk_norm="head",
        dense_drafts=True,
        mtp=MtpSpec(one_projection=True),
        experts=Experts(shared="num_shared_experts", correction=True),
    ),
    "FlexOlmoForCausalLM": PlainDecoder(
        qk_norm="whole", rotary=False, experts=Experts(width="intermediate_size")
    ),
    "GraniteMoeSWAForCausalLM": PlainDecoder(
        sinks=True,
        experts=Experts(
            "num_local_experts", width="intermediate_size", shared_width="shared_intermediate_size"
        ),
    ),
    "HunYuanMoEV1ForCausalLM": PlainDecoder(
        qk_norm="head",
        rotary=False,
        experts=Experts(top="moe_topk", shared="num_shared_expert", shared_width="intermediate_size"),
    ),
    "HYV3ForCausalLM": PlainDecoder(
        qk_norm="head",
        experts=Experts(shared="num_shared_experts", correction=True, itemsize=4),
    ),
    "LagunaForCausalLM": PlainDecoder(
        qk_norm="head",
        extras=_gate,
        heads_per_layer="num_attention_heads_per_layer",
        experts=Experts(shared_width="shared_expert_intermediate_size", correction=True),
    ),
    "MellumForCausalLM": PlainDecoder(qk_norm="head", rotary=False, experts=Experts("num_local_experts")),
    "OlmoeForCausalLM": PlainDecoder(qk_norm="whole", experts=Experts(width="intermediate_size")),
    "Param2MoEForCausalLM": PlainDecoder(
        bias="use_qkv_bias",
        qk_norm="use_qk_norm",
        experts=Experts(
            shared="num_shared_experts",
            shared_width="moe_shared_expert_intermediate_size",
            shared_once=True,
            correction=True,
            itemsize=4,
        ),
    ),
    "PhiMoEForCausalLM": PlainDecoder(
        bias=True,
        out_bias=True,
        layernorm=True,
        window=True,
        head_bias="lm_head_bias",
        experts=Experts("num_local_experts", width="intermediate_size"),
    ),
    "SarvamMoEForCausalLM": PlainDecoder(
        bias="use_qkv_bias",
        qk_norm="use_qk_norm",
        extras=_norm_biases,
        experts=Experts(
            shared="num_shared_experts",
            shared_width="moe_shared_expert_intermediate_size",
            correction="moe_router_enable_expert_bias",
        ),
    ),
}
"""vLLM's architecture name -> its row."""
DECODERS["ExaoneMoEForCausalLM"] = DECODERS["ExaoneMoeForCausalLM"]
DECODERS["ChatGLMForConditionalGeneration"] = DECODERS["ChatGLMModel"]

_PLAIN_KEYS = """
    architectures model_type dtype torch_dtype auto_map transformers_version name_or_path quantization_config
    hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size
    max_position_embeddings attention_bias mlp_bias tie_word_embeddings hidden_act hidden_activation rms_norm_eps
    layer_norm_eps norm_eps rope_theta rope_scaling rope_parameters partial_rotary_factor initializer_range
    attention_dropout hidden_dropout resid_pdrop embd_pdrop use_cache bos_token_id eos_token_id pad_token_id
    unk_token_id sep_token_id pretraining_tp use_qk_norm qk_norm attention_out_bias use_bias
    logits_scaling embedding_multiplier residual_multiplier attention_multiplier logit_scale
"""
PLAIN_KEYS = frozenset(_PLAIN_KEYS.split())
"""Keys that an unknown architecture may have and still be planned as a plain decoder: none of them says anything of
windows, states, latents, experts, sparse, shared or compressed layers."""
PLAIN = PlainDecoder(bias="attention_bias", out_bias="attention_out_bias")


def assumed_plain(k: Keys) -> PlainDecoder | None:
    """A plain decoder where every key of the config is a plain decoder's; else None."""
    if any(key not in PLAIN_KEYS and not key.startswith("_") for key, v in k.raw.items() if v is not None):
        return None
    if not {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"} <= k.raw.keys():
        return None
    normed = any(k.raw.get(key) is True for key in ("use_qk_norm", "qk_norm"))
    biased = k.raw.get("use_bias") is True
    return PLAIN._replace(
        qk_norm="head" if normed else "",
        bias=biased or PLAIN.bias,
        out_bias=biased or PLAIN.out_bias,
        mlp_bias=biased or PLAIN.mlp_bias,
    )
