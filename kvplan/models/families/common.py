"""Pieces that most families share: attention from the usual keys, MLPs, experts, stacks of layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from kvplan.models.config import MAX_LAYERS, Keys
from kvplan.models.spec import (
    AttentionKind,
    AttentionSpec,
    DsparkSpec,
    LayerSpec,
    MlpSpec,
    MtpSpec,
    StateSpec,
    Weight,
)


class Body(NamedTuple):
    """What a builder returns: the decoder's layers and its multi-token-prediction layers."""

    layers: tuple[LayerSpec, ...]
    mtp_layers: tuple[LayerSpec, ...] = ()
    mtp: MtpSpec = MtpSpec()
    dspark: DsparkSpec | None = None
    extras: tuple[Weight, ...] = ()
    """What stands beside the layers."""
    final_norms: int = 1
    lm_head_bias: bool = False
    sized_for: tuple[StateSpec, ...] = ()
    """States that the engine makes room for, though no layer may keep them."""


NO_ATTENTION = AttentionSpec(AttentionKind.NONE)
NO_MLP = MlpSpec()


def num_layers(k: Keys) -> int:
    """The config's layer count."""
    return k.count("num_hidden_layers", high=MAX_LAYERS)


def gqa(k: Keys, **traits: Any) -> AttentionSpec:
    """Full attention from the usual keys; `traits` are fields of `AttentionSpec`."""
    hidden = k.count("hidden_size")
    heads = k.count("num_attention_heads")
    kv_heads = k.count("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise k.error(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if hidden % heads and "head_dim" not in k and "attention_head_dim" not in k:
        raise k.error(
            f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and head_dim is missing"
        )
    head_dim = k.count("head_dim", "attention_head_dim", default=hidden // heads)
    traits = {"v_head_dim": head_dim, "bias": k.flag("attention_bias"), **traits}
    traits["out_bias"] = traits.get("out_bias", False) or k.flag("attention_out_bias")
    return AttentionSpec(AttentionKind.FULL, heads, kv_heads, head_dim, **traits)


def windowed(k: Keys, attention: AttentionSpec) -> AttentionSpec:
    """The same attention over the last `sliding_window` tokens."""
    return replace(attention, kind=AttentionKind.SLIDING, window=k.count("sliding_window"))


def by_layer_type(k: Keys, attention: AttentionSpec, types: tuple[str, ...]) -> list[AttentionSpec]:
    """One attention per entry of `layer_types`; full and sliding are known, others are refused by name."""
    made: dict[str, AttentionSpec] = {}
    for kind in set(types):
        if kind == "full_attention":
            made[kind] = attention
        elif kind == "sliding_attention":
            made[kind] = windowed(k, attention)
        else:
            raise k.error(f"layer_types: unknown attention kind {kind!r}")
    return [made[kind] for kind in types]


def share_kv(k: Keys, attentions: list[AttentionSpec], types: tuple[str, ...]) -> list[AttentionSpec]:
    """The last `num_kv_shared_layers` layers read the last owning layer of their type.

    A layer without one has no keys and values at all (vLLM 0.32 `models/gemma3n.py`, `models/gemma4.py`).
    """
    n = len(types)
    first = n - k.count("num_kv_shared_layers", default=0, low=0)
    owner = {kind: i for i, kind in enumerate(types[: max(first, 0)])}
    if missing := set(types[max(first, 0) :]) - set(owner):
        raise k.error(
            f"num_kv_shared_layers {n - first} of {n} layers: no layer before them is {sorted(missing)[0]},"
            " whose keys and values they could read"
        )
    return attentions[:first] + [
        replace(a, kv_shared_with=owner[t]) for a, t in zip(attentions[first:], types[first:], strict=True)
    ]


def every_nth_full(n: int, period: int) -> tuple[str, ...]:
    """Layer types of the pattern "every `period`-th layer sees everything"."""
    return tuple("sliding_attention" if (i + 1) % period else "full_attention" for i in range(n))


def dense_mlp(k: Keys, *keys: str, num_matrices: int = 3) -> MlpSpec:
    """A dense MLP whose width is the first of `keys` present (default `intermediate_size`)."""
    return MlpSpec(k.count(*keys or ("intermediate_size",)), num_matrices, bias=k.flag("mlp_bias"))


def experts(k: Keys, width: int, number: str | tuple[str, ...], **traits: Any) -> MlpSpec:
    """A mixture of experts, each `width` wide."""
    count = k.count(*([number] if isinstance(number, str) else number), high=1 << 16)
    top = k.count(
        "num_experts_per_tok", "experts_per_token", "num_experts_per_token", "top_k_experts", high=1 << 16
    )
    if top > count:
        raise k.error(f"num_experts_per_tok {top} is more than the {count} experts")
    return MlpSpec(width, num_experts=count, experts_per_token=top, **traits)


def stack(
    k: Keys,
    attentions: list[AttentionSpec],
    mlps: list[MlpSpec],
    norms: int = 2,
    extras: tuple[Weight, ...] = (),
) -> tuple[LayerSpec, ...]:
    """Pair attentions with MLPs; `norms` norms of the hidden size each. Equal layers are one object."""
    size = norms * k.count("hidden_size")
    seen: dict[tuple[int, int], LayerSpec] = {}
    for a, m in zip(attentions, mlps, strict=True):
        seen.setdefault((id(a), id(m)), LayerSpec(a, m, norm_size=size, extras=extras))
    return tuple(seen[id(a), id(m)] for a, m in zip(attentions, mlps, strict=True))


def mtp(k: Keys, layer: LayerSpec, *keys: str, default: int = 0) -> tuple[LayerSpec, ...]:
    """As many copies of `layer` as the config has multi-token-prediction layers."""
    return (layer,) * k.count(*keys or ("num_nextn_predict_layers",), default=default, low=0, high=64)
