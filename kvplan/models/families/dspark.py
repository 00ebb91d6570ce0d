"""A model that drafts a block of tokens at once beside its target: DSpark on Qwen3's layers.

Embedding is the target's, and so is the LM head of a draft over the whole vocabulary. Held to vLLM 0.32
`model_executor/models/qwen3_dspark.py`, `qwen3_dflash.py`.
"""

from __future__ import annotations

from kvplan.models.config import Keys
from kvplan.models.families.common import Body
from kvplan.models.families.dense import qwen3
from kvplan.models.spec import Weight


def qwen3_dspark(k: Keys) -> Body:
    """Qwen3's layers, a projection of several of the target's hidden states, and the heads of DSpark."""
    inner = Keys(k.name, {**k.section("eagle_config").raw, **k.section("dflash_config").raw})
    if inner.flag("use_swa") or not inner.flag("use_aux_hidden_state", k.flag("use_aux_hidden_state", True)):
        raise k.error("use_swa and drafts without the target's hidden states are not planned")
    if not k.flag("sample_from_anchor", True):
        raise k.error("sample_from_anchor false (a bonus query before each block) is not planned")
    body, hidden = qwen3(k), k.count("hidden_size")
    targets = inner.counts("target_layer_ids") or k.counts("dspark_target_layer_ids")
    number = len(targets or k.counts("target_layer_ids")) or len(body.layers)
    seen = k.count("target_hidden_size", default=hidden)
    extras = (
        Weight("fc", hidden, number * seen, linear=True),
        Weight("mask_embedding_and_hidden_norm", 2 * hidden),
        *_fused(body, hidden),
        *_heads(k, hidden),
    )
    return body._replace(extras=extras)


def _fused(body: Body, hidden: int) -> tuple[Weight, ...]:
    """Projections of keys and values a second time, all layers in one matrix, which writes the context's KV."""
    a, n = body.layers[0].attention, len(body.layers)
    each = 2 * n * a.head_dim
    return (
        Weight("fused_kv", a.num_kv_heads * each, hidden, cut="heads", unit=each, copied=True),
        Weight("k_norms", n * a.head_dim, copied=True),
    )


def _heads(k: Keys, hidden: int) -> tuple[Weight, ...]:
    """Markov head (tokens of the target's vocabulary in, of the draft's out), confidence, and a smaller LM head."""
    vocab, rank = k.count("vocab_size", high=1 << 28), k.count("markov_rank")
    drafted = k.count("draft_vocab_size", default=vocab, high=1 << 28)
    found = [
        Weight("markov_head.markov_w1", vocab, rank),
        Weight("markov_head.markov_w2", drafted, rank),
    ]
    if k.flag("enable_confidence_head"):
        width = hidden + (rank if k.flag("confidence_head_with_markov") else 0)
        found.append(Weight("confidence_head.proj", 1, width, bias=True, itemsize=4))
    if drafted < vocab:
        found += [Weight("lm_head", drafted, hidden, cut="vocab"), Weight("d2t", drafted, itemsize=8)]
    return tuple(found)
