"""A model as the planner sees it: layers by attention and MLP kind, read from a Hugging Face config.json.

Knows shapes. Does not know GPUs, engines, block sizes or bytes per rank (`memory`, `weights` do).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, NamedTuple


class AttentionKind(StrEnum):
    """How a layer remembers the past; each kind has its own KV arithmetic."""

    FULL = "full"
    """MHA, GQA, MQA: K and V of every token."""
    SLIDING = "sliding_window"
    """As full, but only the last `window` tokens."""
    CHUNKED = "chunked_local"
    """As full, but only tokens of the current chunk of `window` tokens (Llama 4)."""
    MLA = "mla"
    """One latent vector per token: kv_lora_rank + qk_rope_head_dim (DeepSeek V2/V3, Kimi-K2)."""
    COMPRESSED = "compressed"
    """A window of latents, and behind it one latent for every `compress_ratio` tokens (DeepSeek V4)."""
    STATE = "state"
    """A state of fixed size per sequence: Mamba 2, gated delta net, KDA, short convolution."""
    CIRCULAR = "circular_buffer"
    """One block per sequence for raw keys that wait to be compressed (GLM-5.3-Flash, DeepSeek V4.1): a page, not a
    layer's kind. vLLM `CircularBufferSpec`."""
    CROSS = "cross"
    """K and V of what an encoder made of the request's sound or image; of no token (Whisper)."""
    NONE = "none"
    """A layer without memory (an MLP-only layer of Nemotron-H)."""

    @property
    def is_growing(self) -> bool:
        """Whether every token is kept to the end: vLLM's FullAttentionSpec and its children."""
        return self in (AttentionKind.FULL, AttentionKind.MLA)

    @property
    def is_windowed(self) -> bool:
        """Whether tokens before a window or chunk are forgotten."""
        return self in (AttentionKind.SLIDING, AttentionKind.CHUNKED)

    @property
    def is_fixed(self) -> bool:
        """Whether a sequence holds as many blocks whatever its length."""
        return self in (AttentionKind.STATE, AttentionKind.CIRCULAR)

    @property
    def keeps_tokens(self) -> bool:
        """Whether KV of tokens is kept, rather than a state or nothing."""
        return self.is_growing or self.is_windowed


@dataclass(frozen=True, slots=True)
class StateSpec:
    """The state of a STATE layer, for the whole model (before tensor parallelism).

    `facts` by family, named as the arguments of vLLM's state-shape formulas:

    * mamba1: intermediate_size, state_size, conv_kernel, time_step_rank; proj_bias and conv_bias 1 where those have one
    * mamba2: intermediate_size, n_groups, num_heads, head_dim, state_size, conv_kernel; proj_bias, conv_bias
    * gdn_attention: num_k_heads, num_v_heads, head_k_dim, head_v_dim, conv_kernel_size
    * kda: num_heads, head_dim, conv_kernel_size; whole_gates where the gates have no low-rank form, whole_output_gate
      where the output's has none; checkpoints where prefills export their state and projections are one padded matrix,
      exports where they do without that
    * linear_attention: num_heads, head_dim, qk_norm
    * short_conv: intermediate_size, conv_kernel; biased 1 where its three parts have biases
    * ngram_conv: intermediate_size, conv_kernel, dilation, embedding_dim (embeddings of n-grams, added to all streams)
    """

    family: str
    """vLLM's name: mamba1, mamba2, gdn_attention, kda, linear_attention, short_conv, ngram_conv."""
    facts: tuple[tuple[str, int], ...]
    """The config's sizes its shape formula needs, as (name, value) pairs."""
    ssm_dtype: str = "auto"
    """Dtype of the recurrent state under `--mamba-ssm-cache-dtype auto`; auto: as the convolution state."""
    gated_norm: bool = True
    """The mixer has norms of its own: before its output projection (Mamba 2), of its step sizes (Jamba)."""

    def __getitem__(self, key: str) -> int:
        return dict(self.facts)[key]


class Weight(NamedTuple):
    """A matrix or vector beside a family's usual ones, whole model."""

    name: str
    rows: int
    cols: int = 1
    cut: Literal["", "rows", "cols", "vocab", "heads", "host"] = ""
    """How tensor parallelism cuts it: not at all, by rows, by columns, as rows of a padded vocabulary, or by heads of
    `unit` rows, copied where there are more ranks than heads. Rows and columns of `unit` heads stay whole where the
    ranks do not divide them. `host`: it lies in the host's memory, on no rank."""
    unit: int = 1
    bias: bool = False
    copies: int = 1
    itemsize: int = 0
    """Bytes per element; 0: the model's dtype's."""
    linear: bool = False
    """A quantisation method may convert it."""
    picked: int = 0
    """Of the copies, those that one token visits, where a router picks them; 0: all."""
    copied: bool = False
    """A second time in memory, made after loading; in no checkpoint."""


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The shape of one layer's attention, whole model."""

    kind: AttentionKind
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    v_head_dim: int = 0
    """Equal to `head_dim` except where a model has narrower values (MiMo, MLA)."""
    window: int = 0
    """Tokens of the sliding window, of the local chunk, or that an encoder makes; 0 for the other kinds."""
    kv_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    qk_nope_head_dim: int = 0
    q_lora_rank: int = 0
    index_head_dim: int = 0
    """Width of the sparse-attention indexer's key (DeepSeek V3.2, GLM-5); 0 where a layer has no indexer."""
    index_num_heads: int = 0
    index_itemsize: int = 1
    """Bytes per element of an indexer's key; 1: fp8, with scales."""
    compress_ratio: int = 0
    """Tokens behind one compressed latent, 0: only the window; of full attention, behind one key of its indexer."""
    window_block: int = 0
    """Tokens in a block of a window of latents, which its kernel settles; 0: of all other attention."""
    shares_latents: bool = False
    """Compressed attention of a model whose layers read each other's latents (DeepSeek V4.1)."""
    latents_elsewhere: bool = False
    """It reads the compressed latents of a layer before it and keeps its window alone (DeepSeek V4.1)."""
    latent_row: int = 0
    """Elements that a latent takes in the cache where its row is longer: as other layers' (dots3-note); 0: as it is."""
    ring_bytes: int = 0
    """Bytes that an indexer keeps once a request: keys of the tokens that it has not yet summed up."""
    conv_window: int = 0
    """Tokens that short convolutions beside the attention look back on, kept as a window of their own (Inkling)."""
    conv_width: int = 0
    """Elements per KV head that such a convolution keeps of a token."""
    index_topk: int = 0
    """Tokens that sparse attention really reads; also set on layers that reuse another layer's indexer."""
    state: StateSpec | None = None
    kv_shared_with: int | None = None
    """Index of the layer whose KV this one reads instead of owning any (Gemma 4 small); None: owns."""
    bias: bool = False
    """Biases on the Q, K and V projections."""
    out_bias: bool = False
    qk_norm: Literal["", "head", "all", "whole"] = ""
    """Norms of Q and K: none, one weight per head dimension, one per projected element (MiniMax), or one per element
    of all ranks together (OLMo)."""
    reads_embedding: bool = False
    """Q, K and V are of a token's embedding and its state side by side (EAGLE-3)."""
    gated: bool = False
    """The Q projection also yields an output gate (Qwen3-Next)."""
    sinks: bool = False
    """One learned sink per head (gpt-oss)."""
    keys_are_values: bool = False
    """The checkpoint has no V projection (Gemma 4's global layers)."""
    sized_as: tuple[int, int] | None = None
    """KV heads and head size that vLLM sizes blocks by, where it takes a latent for plain attention (Ling 3)."""
    weightless: bool = False
    """It keeps KV but has no weights of its own: another layer's, or the layer's other attention's, serve it."""

    @property
    def is_latent(self) -> bool:
        """Whether it projects tokens to latents and keeps those: all of them, or those within a window (dots3-note)."""
        return self.kind is AttentionKind.MLA or (
            self.kind is AttentionKind.SLIDING and self.kv_lora_rank > 0
        )

    @property
    def unusual_cache(self) -> str:
        """What it keeps that only one planner is known to lay out; empty for keys, values, latents and states."""
        if self.kind is AttentionKind.COMPRESSED:
            return "compressed attention"
        if self.kind is AttentionKind.CROSS:
            return "attention to an encoder"
        if self.ring_bytes:
            return "an indexer of pooled keys"
        if self.latent_row or (self.is_latent and self.window):
            return "latents within windows"
        return "convolutions' windows beside KV" if self.conv_window else ""


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """One layer's feed-forward part, whole model."""

    intermediate_size: int = 0
    """Width of the dense MLP, or of one expert when `num_experts` > 0; 0 for no MLP."""
    num_matrices: int = 3
    """3 for gated (gate, up, down), 2 for plain (up, down)."""
    num_experts: int = 0
    experts_per_token: int = 0
    shared_intermediate_size: int = 0
    """Summed width of the experts that every token visits, or of a dense MLP beside the experts."""
    shared_gate: bool = False
    """The shared expert has a gate of its own (Qwen)."""
    bias: bool = False
    """Biases on the MLP's or the experts' projections, and on the router."""
    router_correction: bool = False
    """One correction value per expert (DeepSeek V3's e_score_correction_bias)."""
    router_itemsize: int = 0
    """Bytes per router weight where it is not the model's dtype (MiMo-V2 keeps 4); 0: the model's."""
    router_scales: bool = False
    """The router scales its input and each expert's output (Gemma 4)."""
    experts_elsewhere: bool = False
    """Its routed experts and their router are those of a layer before it, which several share (Intern-S2-Mobius)."""
    block: int = 0
    """Channels that a rank's share of the dense MLP and of shared experts is padded to multiples of (dots3-note)."""
    latent_size: int = 0
    """Width that experts work in, where a model projects down to it (Nemotron 3 Super); 0: hidden size."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer (or one MTP layer)."""

    attention: AttentionSpec
    mlp: MlpSpec
    beside: AttentionSpec | None = None
    """A state mixer that runs beside the attention in the same layer (Falcon-H1), or attention to an encoder."""
    norm_size: int = 0
    """Elements of the layer's norms and scales, those inside attention and state mixers left out."""
    extras: tuple[Weight, ...] = ()
    """What the family has beyond these parts."""

    @property
    def mixers(self) -> tuple[AttentionSpec, ...]:
        """All parts of the layer that remember, in vLLM's order."""
        return (self.attention,) if self.beside is None else (self.attention, self.beside)


@dataclass(frozen=True, slots=True)
class MtpSpec:
    """What stands around multi-token-prediction layers, and which of them are built.

    The defaults are DeepSeek V3's: each layer has a projection of (embedding, hidden state), whole on every rank and
    never quantised, and three norms. Embedding and head are the target's.
    """

    layers_each: int = 1
    """Layers of one module."""
    one_projection: bool = False
    """One projection and its norms serve all layers, cut by rows (Qwen3-Next, EXAONE)."""
    quantised_projection: bool = False
    """The projection takes the checkpoint's format (DeepSeek V4)."""
    plain_outputs: bool = False
    """Attention's output projections are never quantised (MiMo V2)."""
    projected: bool = True
    """There are projections at all."""
    norms: int = 3
    """Vectors of the hidden size beside the layer's own: of embeddings, of hidden states, and a last one."""
    shared_norms: int = 0
    """Those of them that all layers share (Inkling norms embeddings once for all)."""
    as_many_as_drafted: bool = False
    """As many layers are built as tokens are drafted; else all."""
    numbered_anew: bool = False
    """Layers are numbered from 0 again, so that skipping layer 0 of quantised KV skips both."""
    own_rotary: bool = False
    """They turn positions by a table of their own."""
    short_rotary: bool = False
    """The same, with one row for each position where the model's has four (Intern-S2-Mobius)."""
    own_heads: bool = False
    """Each layer has an LM head, which vLLM keeps beside the target's (Step)."""
    repeats_ends: bool = False
    """Each layer's checkpoint repeats embedding and head."""
    extras: tuple[Weight, ...] = ()
    """What all layers share beside these."""


@dataclass(frozen=True, slots=True)
class DsparkSpec:
    """Layers that draft a block of tokens in one pass, inside the checkpoint (DSpark of DeepSeek V4)."""

    layers: tuple[LayerSpec, ...]
    around: MtpSpec
    block_size: int
    """Tokens that they were trained to draft."""


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """A vision tower that the engine loads with the model."""

    family: str
    """A name of `kvplan.models.vision`, declared, or unlisted."""
    facts: tuple[tuple[str, int], ...]
    parts: tuple[Weight, ...] = ()
    """Of a declared tower: its weights, whole."""
    towers: tuple[tuple[str, ...], ...] = (("image", "video"),)
    """Kinds of items that each tower in it is for: one for images and another for sound are two."""
    architecture: str = ""
    """Of the model that it belongs to."""
    shapes: tuple[tuple[int, int], ...] = ()
    """Sides that the config lists for pictures of several tiles, in its order."""

    def __getitem__(self, key: str) -> int:
        return dict(self.facts)[key]


class RotaryTable(NamedTuple):
    """A table of cosines and sines that the engine builds for the model's positions."""

    positions: int
    dims: int
    itemsize: int = 2
    kv_heads: int = 0
    """Heads of keys that each have a table, cut as they are; 0: one table for all."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything kvplan knows of a model. Made by `load_model` or `from_config`, by hand only in tests."""

    name: str
    architecture: str
    """`architectures[0]` of the config, e.g. Qwen3ForCausalLM."""
    layers: tuple[LayerSpec, ...]
    hidden_size: int
    vocab_size: int
    max_model_len: int
    """The longest context the config allows, as vLLM derives it (rope scaling counted)."""
    dtype: str
    """bfloat16, float16 or float32, as the config says; vLLM loads float32 checkpoints in 16 bits."""
    tie_word_embeddings: bool
    mtp_layers: tuple[LayerSpec, ...] = ()
    """Multi-token-prediction layers; they cost memory only when speculation uses them."""
    mtp: MtpSpec = MtpSpec()
    """What stands around those layers."""
    dspark: DsparkSpec | None = None
    """Layers that draft by DSpark; None: it has none."""
    model_type: str = ""
    """As the config says, outermost; empty: it does not."""
    source: str = ""
    """Where the config came from: bundled (with its source), a path, or a hub revision."""
    planned_as: str = ""
    """The bundled checkpoint whose config stands for this one, which has the same; empty: its own."""
    assumed: str = ""
    """What is assumed of an architecture that is not known; empty: known."""
    score_head: tuple[int, ...] = ()
    """Reward models: widths of the layers that replace the LM head, e.g. (3584, 2); empty for an LM."""
    score_itemsize: int = 4
    """Bytes per weight of those."""
    score_converts: bool = True
    """Whether formats of weights hold for those too."""
    pools: Literal["", "embed", "classify", "own"] = ""
    """What it is served for instead of generating; own: its class does it by itself; empty: it generates."""
    pooled_by: str = ""
    """LAST, MEAN or CLS: the token or tokens of a sequence that its checkpoint's modules embed by; empty: not said."""
    num_labels: int = 2
    """Labels of a layer that vLLM puts where its LM head is, if it is to classify."""
    headless: bool = False
    """It embeds: no LM head is loaded."""
    vision: VisionSpec | None = None
    rotary: tuple[RotaryTable, ...] = ()
    """Rotary tables, one per kind of rotary embedding in the model."""
    rotary_until_0_31: tuple[RotaryTable, ...] = ()
    """The same as vLLM 0.31 and before built them, where 0.32 changed them; empty: as `rotary`."""
    max_model_len_stated: bool = True
    """Whether the config says how long; if not, `max_model_len` is vLLM's 2,048 and the user may ask for any length."""
    yarn_max_model_len: int = 0
    """Original length times YaRN's factor, the longest context for vLLM before 0.30; 0: no YaRN."""
    extras: tuple[Weight, ...] = ()
    """What the family has beside the layers: learned positions, norms of the embedding ..."""
    sized_for: tuple[StateSpec, ...] = ()
    """States that blocks must have room for, though no layer may keep them."""
    final_norms: int = 1
    """Vectors of the hidden size after the last layer: 2 for a norm with a bias, 0 for none."""
    lm_head_bias: bool = False
    longrope_original_len: int = 0
    """The length before longrope scaling, which vLLM serves unless told otherwise; 0: no longrope."""
    shares_ends: bool = False
    """What drafts beside a target: embedding and LM head are the target's, or among the extras."""
    draft_block: int = 0
    """Tokens that it was trained to draft at once; 0: its config does not say."""
    backbone_hidden_size: int = 0
    """Width of the model for which it drafts, whose embedding and KV it reads (Gemma 4's assistants); 0: no such."""
    canvas_length: int = 0
    """Tokens that it makes at once, by diffusion; 0: one after another."""
    drafts_as: str = ""
    """The method by which it drafts for another model (eagle, eagle3, dspark, mtp ...); empty: a model of its own."""
    reads_hidden_size: int = 0
    """Width of the states of its target that it reads; 0: it reads none."""
    quantization: Mapping[str, object] | None = None
    """The config's `quantization_config`, as it stands; `quantization.py` reads it."""
    hf_overrides: str = ""
    """What was laid over the config, as JSON."""
    hf_config_path: str = ""
    """Where its config was read, if not beside its weights (vLLM's flag)."""

    def __hash__(self) -> int:
        """Of what tells models apart; layers and the quantization's mapping are left to comparison."""
        return hash((self.name, self.architecture, self.hidden_size, self.vocab_size, self.max_model_len))

    @property
    def default_max_model_len(self) -> int:
        """What vLLM serves without `--max-model-len`."""
        return self.longrope_original_len or self.max_model_len

    def drafting_by(self, method: str, num_speculative_tokens: int) -> ModelSpec:
        """The model whose multi-token-prediction layers are those that vLLM builds to draft so many tokens."""
        if method == "dspark" and self.dspark:
            return replace(self, mtp_layers=self.dspark.layers, mtp=self.dspark.around)
        if method != "mtp" or not self.mtp.as_many_as_drafted:
            return self
        return replace(self, mtp_layers=self.mtp_layers[:num_speculative_tokens])

    @property
    def num_mtp_modules(self) -> int:
        """How many tokens ahead the checkpoint's own layers were trained to predict."""
        return len(self.mtp_layers) // self.mtp.layers_each

    @property
    def only_drafts(self) -> bool:
        """Whether it is no model without another one, whose embedding it takes."""
        return bool(self.drafts_as)

    @property
    def path(self) -> str:
        """What an engine loads it by: its folder or file, or its name."""
        if (
            self.hf_config_path
            or self.source in ("", "config.json")
            or self.source.startswith(("bundled:", "hub:"))
        ):
            return self.name
        return self.source.removesuffix("/config.json") or "/"

    @property
    def is_moe(self) -> bool:
        """Whether any layer has experts."""
        return any(layer.mlp.num_experts for layer in self.layers)

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """The kinds of states of fixed size that its layers keep."""
        return tuple(dict.fromkeys(m.state for layer in self.layers for m in layer.mixers if m.state))

    @property
    def encoded_tokens(self) -> int:
        """What an item is to the decoder of an encoder-decoder model; 0: no such model."""
        return max(
            (m.window for layer in self.layers for m in layer.mixers if m.kind is AttentionKind.CROSS),
            default=0,
        )

    @property
    def is_hybrid(self) -> bool:
        """Whether any layer keeps a state of fixed size."""
        return any(m.kind is AttentionKind.STATE for layer in self.layers for m in layer.mixers)
