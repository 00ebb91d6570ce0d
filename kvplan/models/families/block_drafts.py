"""What drafts a block of tokens at once beside its target: DSpark and DFlash on Qwen3's layers, and Medusa's heads.

Embedding is the target's, and so is the LM head of a draft over the whole vocabulary, where both are equally wide. Held
to vLLM 0.32 `model_executor/models/qwen3_dspark.py`, `qwen3_dflash.py`, `medusa.py`.
"""

from __future__ import annotations

from dataclasses import replace

from kvplan.models.config import Keys
from kvplan.models.families.common import NO_ATTENTION, NO_MLP, Body, dense_mlp, gqa, num_layers, stack
from kvplan.models.families.dense import qwen3
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, Weight


def qwen3_dspark(k: Keys) -> Body:
    """Qwen3's layers, a projection of several of the target's hidden states, and the heads of DSpark."""
    inner = _inner(k)
    if inner.flag("use_swa") or not inner.flag("use_aux_hidden_state", k.flag("use_aux_hidden_state", True)):
        raise k.error("use_swa and drafts without the target's hidden states are not planned")
    if not k.flag("sample_from_anchor", True):
        raise k.error("sample_from_anchor false (a bonus query before each block) is not planned")
    body, hidden = qwen3(k), k.count("hidden_size")
    targets = inner.counts("target_layer_ids") or k.counts("dspark_target_layer_ids")
    number = len(targets or k.counts("target_layer_ids")) or len(body.layers)
    return body._replace(
        extras=(*_around(k, body, number), *_markov(k, hidden), *_ends(k)),
    )


def qwen3_dflash(k: Keys) -> Body:
    """Qwen3's layers, each full or over a window, which read several of the target's hidden states as context."""
    inner, n, hidden = _inner(k), num_layers(k), k.count("hidden_size")
    if inner.flag("sample_from_anchor"):
        raise k.error("sample_from_anchor true: vLLM 0.32's DFlash does not take it")
    attention = gqa(
        k,
        qk_norm="head",
        out_bias=k.flag("attention_bias"),
        sinks=inner.flag("attention_sink_bias", k.flag("add_swa_attention_sink_bias")),
    )
    body = Body(stack(k, _windows(k, inner, attention, n), [dense_mlp(k)] * n))
    number = len(_states_read(k, inner)) or n
    if not inner.flag("use_aux_hidden_state", k.flag("use_aux_hidden_state", True)):
        number = 0
    own = (Weight("lm_head", k.count("vocab_size", high=1 << 28), hidden, cut="vocab"),)
    fewer = _ends(k)
    return body._replace(
        extras=(
            *_around(k, body, number),
            *(own if k.flag("has_own_lm_head") and not fewer else fewer),
        )
    )


def medusa(k: Keys) -> Body:
    """One head of Medusa as a layer: residual blocks and an LM head; as many are built as tokens are drafted."""
    hidden, vocab = k.count("hidden_size"), k.count("vocab_size", high=1 << 28)
    if k.flag("original_lm_head"):
        raise k.error("original_lm_head true (one LM head for all of Medusa's) is not planned")
    block = Weight("block", hidden, hidden, bias=k.flag("medusa_fc_bias"), copies=_named(k, "layers", 1))
    head = Weight("lm_head", vocab, hidden, cut="vocab")
    return Body((LayerSpec(NO_ATTENTION, NO_MLP, extras=(block, head)),), final_norms=0)


def _named(k: Keys, what: str, default: int) -> int:
    """A count under whatever key has `num` and its name, as vLLM's config class reads Medusa's."""
    key = next((key for key in k.raw if "num" in key and what in key), "")
    return k.count(key, default=default, high=64) if key else default


def _inner(k: Keys) -> Keys:
    """Both names of the section that says how a draft reads its target."""
    return Keys(k.name, {**k.section("eagle_config").raw, **k.section("dflash_config").raw})


def _states_read(k: Keys, inner: Keys) -> tuple[int, ...]:
    """Layers of the target whose states it reads, where the config lists them."""
    keys = ("eagle_aux_hidden_state_layer_ids", "dspark_target_layer_ids", "target_layer_ids")
    stated = k.counts(keys[0]) or inner.counts("target_layer_ids")
    return stated or next(filter(None, map(k.counts, keys[1:])), ()) or inner.counts("layer_ids")


def _windows(k: Keys, inner: Keys, full: AttentionSpec, n: int) -> list[AttentionSpec]:
    """Which layers see a window alone: as `layer_types` says, or all by `use_swa`."""
    types = k.per_layer("layer_types", n) or _qwen3_types(k, n)
    sliding = [kind == "sliding_attention" for kind in types]
    sliding = [True] * n if inner.flag("use_swa") and not any(sliding) else sliding
    if not any(sliding):
        return [full] * n
    stated = k.count("sliding_window", default=0, low=0) if k.flag("use_sliding_window", True) else 0
    window = inner.count("swa_window_size", default=stated, low=0)
    if not window:
        raise k.error("windows without a size (dflash_config.swa_window_size or sliding_window)")
    over = replace(full, kind=AttentionKind.SLIDING, window=window)
    return [over if one else full for one in sliding]


def _qwen3_types(k: Keys, n: int) -> tuple[str, ...]:
    """What transformers' config class makes of a config without `layer_types`."""
    first = k.count("max_window_layers", default=28, low=0) if k.flag("use_sliding_window") else n
    return tuple("sliding_attention" if i >= first else "full_attention" for i in range(n))


def _around(k: Keys, body: Body, number: int) -> tuple[Weight, ...]:
    """The projection of the target's states, norms, and the context's projections of keys and values."""
    hidden = k.count("hidden_size")
    seen = k.count("target_hidden_size", default=hidden)
    fc = (Weight("fc", hidden, number * seen, linear=True),) if number else ()
    own = Weight("embed_tokens", k.count("vocab_size", high=1 << 28), hidden, cut="vocab")
    embeds = (own,) if seen != hidden else ()  # not as wide as the target's
    return (*fc, Weight("mask_embedding_and_hidden_norm", 2 * hidden), *_fused(k, body, hidden), *embeds)


def _fused(k: Keys, body: Body, hidden: int) -> tuple[Weight, ...]:
    """Projections of keys and values a second time, all layers in one matrix, which writes the context's KV; quantised
    ones are read where they lie."""
    a, n = body.layers[0].attention, len(body.layers)
    each = 2 * n * a.head_dim
    norms = Weight("k_norms", n * a.head_dim, copied=True)
    if k.section("quantization_config").raw:
        return (norms,)
    rows = a.num_kv_heads * each
    return (
        Weight("fused_kv", rows, hidden, cut="heads", unit=each, copied=True, bias=a.bias),
        norms,
    )


def _markov(k: Keys, hidden: int) -> tuple[Weight, ...]:
    """Markov head (tokens of the target's vocabulary in, of the draft's out) and confidence."""
    vocab, rank = k.count("vocab_size", high=1 << 28), k.count("markov_rank")
    drafted = k.count("draft_vocab_size", default=vocab, high=1 << 28)
    found = [
        Weight("markov_head.markov_w1", vocab, rank),
        Weight("markov_head.markov_w2", drafted, rank),
    ]
    if k.flag("enable_confidence_head"):
        width = hidden + (rank if k.flag("confidence_head_with_markov") else 0)
        found.append(Weight("confidence_head.proj", 1, width, bias=True, itemsize=4))
    return tuple(found)


def _ends(k: Keys) -> tuple[Weight, ...]:
    """An LM head of its own, where it drafts fewer tokens than the vocabulary has, or is not as wide as its target."""
    vocab, hidden = k.count("vocab_size", high=1 << 28), k.count("hidden_size")
    drafted = k.count("draft_vocab_size", default=vocab, high=1 << 28)
    if drafted < vocab:
        return (
            Weight("lm_head", drafted, hidden, cut="vocab"),
            Weight("d2t", drafted, itemsize=8),
        )
    wide = k.count("target_hidden_size", default=hidden) != hidden
    return (Weight("lm_head", vocab, hidden, cut="vocab"),) if wide else ()
