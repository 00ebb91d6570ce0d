"""A model as the planner sees it: layers by attention kind and MLP kind, read from a Hugging Face config.json.

Knows shapes. Does not know GPUs, engines, block sizes or bytes per rank (`layout`, `weights` do).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
    STATE = "state"
    """A state of fixed size per sequence: Mamba 1/2, gated delta net, KDA, linear attention, short convolution."""
    NONE = "none"
    """A layer without memory (an MLP-only layer of Nemotron-H), or one that reads another layer's KV."""


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One state tensor of a STATE layer, for the whole model (before tensor parallelism)."""

    family: str
    """vLLM's name: mamba1, mamba2, gdn_attention, linear_attention, short_conv, kda."""
    facts: tuple[tuple[str, int], ...]
    """The config's sizes its shape formula needs, as sorted (name, value) pairs."""

    def __getitem__(self, key: str) -> int:
        return dict(self.facts)[key]


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The memory-relevant shape of one layer's attention, whole model."""

    kind: AttentionKind
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    v_head_dim: int = 0
    """Equal to `head_dim` except where a model has narrower values (MiMo)."""
    window: int = 0
    """Tokens of the sliding window or of the local chunk; 0 for the other kinds."""
    kv_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    qk_nope_head_dim: int = 0
    q_lora_rank: int = 0
    index_head_dim: int = 0
    """Width of the sparse-attention indexer's key (DeepSeek V3.2, GLM-5); 0 where there is none."""
    index_num_heads: int = 0
    index_topk: int = 0
    """Tokens that sparse attention really reads."""
    state: StateSpec | None = None


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """One layer's feed-forward part, whole model."""

    intermediate_size: int
    """Width of the dense MLP, or of one expert when `num_experts` > 0; 0 for no MLP."""
    num_matrices: int = 3
    """3 for gated (gate, up, down), 2 for plain (up, down)."""
    num_experts: int = 0
    experts_per_token: int = 0
    shared_intermediate_size: int = 0
    """Summed width of the experts that every token visits."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer (or one MTP layer)."""

    attention: AttentionSpec
    mlp: MlpSpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything kvplan knows of a model. Made by `load_model` or `from_config`; never by hand outside tests."""

    name: str
    architecture: str
    """`architectures[0]` of the config, e.g. Qwen3ForCausalLM."""
    layers: tuple[LayerSpec, ...]
    hidden_size: int
    vocab_size: int
    max_model_len: int
    """The longest context the config allows, as vLLM derives it (rope scaling counted)."""
    dtype: str
    """bfloat16, float16 or float32."""
    tie_word_embeddings: bool
    mtp_layers: tuple[LayerSpec, ...] = ()
    """Multi-token-prediction layers; they cost memory only when speculation uses them."""
    source: str = ""
    """Where the config came from: bundled (with its source), a path, or a hub revision."""
