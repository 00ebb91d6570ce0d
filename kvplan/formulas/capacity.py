"""Closed-form KV arithmetic: bytes, blocks and concurrency. Pure, broadcasting; start reading here.

A decoder remembers two vectors, K and V, per token, layer and KV head. That is the whole subject:

    bytes/token  ->  bytes/sequence  ->  blocks/sequence  ->  sequences in a pool of blocks

Every function takes numbers or arrays of any shapes that broadcast, and answers in kind. Bytes, tokens and
blocks are integers. Nothing here knows a model, a GPU or an engine's flags: `memory` reads those off and asks
these formulas. Sizes of real engines differ from the textbook in blocks (`full_blocks` and on) and in what
branches share (`tree_blocks`); lengths that vary are in `varying`, whose functions are public here too.

Nothing in the package asks the notebook's calculators, which are here for you: `sequence_bytes`, `window_peak_blocks`,
`longest_trace`, `tree_tokens`, `tree_blocks`, `mean_resident_blocks`, `overflow_probability`, `balance_context`,
`compute_bound_batch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kvplan.formulas.varying import (
    _ints,
    _larger,
    _smaller,
    cdiv,
    max_traces,
    mean_resident_blocks,
    overflow_probability,
    resident_distribution,
    resident_moments,
    sum_overflow_probability,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from kvplan.formulas.varying import Floats, Ints

    IntLike = npt.ArrayLike
    """Integers of any shape; scalars in, scalar out."""
else:
    from kvplan.formulas import arrays as np

Sharing = Literal["none", "full_block", "vllm"]

__all__ = [
    "balance_context",
    "cdiv",
    "chunked_blocks",
    "chunked_resident_blocks",
    "compute_bound_batch",
    "full_blocks",
    "kv_bytes_per_token",
    "kv_heads_per_rank",
    "latent_bytes_per_token",
    "longest_trace",
    "max_concurrency",
    "max_traces",
    "mean_resident_blocks",
    "num_sequences",
    "overflow_probability",
    "pool_blocks",
    "resident_distribution",
    "resident_moments",
    "sequence_bytes",
    "shared_blocks",
    "state_blocks",
    "sum_overflow_probability",
    "tree_blocks",
    "tree_tokens",
    "window_blocks",
    "window_peak_blocks",
    "window_resident_blocks",
]


def _floats(x: npt.ArrayLike) -> Floats:
    return np.asarray(x, dtype=np.float64)


# --- bytes -----------------------------------------------------------------------------------------------


def kv_heads_per_rank(num_kv_heads: IntLike, tp: IntLike) -> Ints:
    """KV heads that one of `tp` tensor-parallel ranks holds: more ranks than heads copy heads instead of splitting.

        max(1, kv_heads // tp)

    Source: vLLM 0.32, `config/model.py: get_num_kv_heads`.

    >>> print(kv_heads_per_rank(8, 2), kv_heads_per_rank(8, [1, 4, 16]))
    4 [8 2 1]
    """
    heads: Ints = _larger(1, _ints(num_kv_heads) // _ints(tp))
    return heads


def kv_bytes_per_token(
    num_layers: IntLike,
    num_kv_heads: IntLike,
    head_dim: IntLike,
    itemsize: IntLike = 2,
    *,
    tp: IntLike = 1,
    v_head_dim: IntLike | None = None,
) -> Ints:
    """Bytes of K and V that one token adds on one rank.

        layers * kv_heads_per_rank * (head_dim + v_head_dim) * itemsize      [bytes/token]

    `v_head_dim` is `head_dim` where none is given; few models have narrower values. Source: the tensors' shapes.

    >>> print(f"{kv_bytes_per_token(80, 8, 128):,}")  # a 70B model, 8 KV heads, 16 bits
    327,680
    >>> print(kv_bytes_per_token(80, 8, 128, tp=[1, 4, 8, 16]))
    [327680  81920  40960  40960]
    """
    keys = _ints(head_dim)
    values = keys if v_head_dim is None else _ints(v_head_dim)
    heads = kv_heads_per_rank(num_kv_heads, tp)
    bytes_per_token: Ints = _ints(num_layers) * heads * (keys + values) * _ints(itemsize)
    return bytes_per_token


def latent_bytes_per_token(
    num_layers: IntLike,
    kv_lora_rank: IntLike,
    qk_rope_head_dim: IntLike,
    itemsize: IntLike = 2,
    *,
    dcp: IntLike = 1,
) -> Ints:
    """Bytes of the latent vector (MLA) that one token adds on one rank.

        layers * (kv_lora_rank + qk_rope_head_dim) * itemsize / dcp          [bytes/token]

    Tensor parallelism does not divide it, every rank holds the whole latent; decode context parallelism (`dcp`)
    deals tokens to ranks, so this is an average. Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.

    >>> print(latent_bytes_per_token(61, 512, 64), latent_bytes_per_token(61, 512, 64, [2, 1]))
    70272 [70272 35136]
    """
    width = _ints(kv_lora_rank) + _ints(qk_rope_head_dim)
    return cdiv(_ints(num_layers) * width * _ints(itemsize), dcp)


def sequence_bytes(
    num_tokens: IntLike, beta: IntLike, *, alpha: IntLike = 0, cap: IntLike | None = None
) -> Ints:
    """Bytes that one sequence of n tokens holds: a fixed state and a growing part, perhaps with a cap.

        alpha + beta * min(n, cap)                                           [bytes]

    alpha is 0 for attention and the size of the state for Mamba and linear attention; cap is the window of
    sliding attention, or a budget of thinking tokens.

    >>> print(f"{sequence_bytes(50_000, 327_680):,}")
    16,384,000,000
    >>> print(sequence_bytes([500, 10_000], 327_680, cap=2_048))
    [163840000 671088640]
    """
    n = _ints(num_tokens)
    kept = n if cap is None else _smaller(n, _ints(cap))
    return _ints(alpha) + _ints(beta) * kept


# --- blocks of one sequence, by the kind of its layers ------------------------------------------------------


def full_blocks(num_tokens: IntLike, block_size: IntLike) -> Ints:
    """Blocks that hold n tokens where nothing is forgotten (full attention, MLA): ceil(n / block).

    >>> print(full_blocks(5_000, 16), full_blocks([1, 16, 17], 16))
    313 [1 1 2]
    """
    return cdiv(num_tokens, block_size)


def window_blocks(
    num_tokens: IntLike, window: IntLike, in_flight_tokens: IntLike, block_size: IntLike
) -> Ints:
    """Blocks that start-up and admission reserve for a sliding window of W tokens.

        ceil(min(W - 1 + in_flight, n) / block) + 1                          [blocks]

    `in_flight_tokens` is the token budget of a step times the steps in flight (2 under asynchronous
    scheduling). This is what vLLM prints and refuses by; + 1 since a window rarely starts at a block's start.
    Source: vLLM 0.32, `v1/kv_cache_interface.py: SlidingWindowSpec`.

    >>> print(window_blocks(32_768, 1_024, 16_384, 16), window_blocks(32_768, 1_024, [4_096, 8_192], 16))
    1089 [321 577]
    """
    held = _smaller(_ints(window) - 1 + _ints(in_flight_tokens), _ints(num_tokens))
    return cdiv(held, block_size) + 1


def window_peak_blocks(
    num_tokens: IntLike, window: IntLike, in_flight_tokens: IntLike, block_size: IntLike
) -> Ints:
    """Most blocks that a prompt of n tokens holds in a sliding-window group while it is computed.

    As `window_blocks`, but never more than the prompt's own blocks.

    >>> print(window_peak_blocks([100, 32_768], 1_024, 16_384, 16))
    [   7 1089]
    """
    reserved = window_blocks(num_tokens, window, in_flight_tokens, block_size)
    blocks: Ints = _smaller(full_blocks(num_tokens, block_size), reserved)
    return blocks


def window_resident_blocks(num_tokens: IntLike, window: IntLike, block_size: IntLike) -> Ints:
    """Blocks that a sequence of n tokens holds in a sliding-window group while it decodes, a token a step.

        ceil(n / block) - floor(max(0, n - W) / block)                       [blocks]

    The last token sees itself and W - 1 before it; whole blocks of older ones have gone back to the pool. Under
    asynchronous scheduling a block goes back a step later. Source: vLLM 0.32,
    `v1/core/single_type_kv_cache_manager.py`, observed step by step.

    >>> print(window_resident_blocks(32_768, 1_024, 16), window_resident_blocks([16, 1_024, 1_040], 1_024, 16))
    64 [ 1 64 64]
    """
    n = _ints(num_tokens)
    gone: Ints = _larger(0, n - _ints(window)) // _ints(block_size)
    return cdiv(n, block_size) - gone


def chunked_blocks(
    num_tokens: IntLike, chunk: IntLike, in_flight_tokens: IntLike, block_size: IntLike
) -> Ints:
    """Blocks that start-up and admission reserve for chunked local attention (Llama 4) with chunks of C tokens.

        ceil(min(C + in_flight, n) / block)                                  [blocks]

    Source: vLLM 0.32, `v1/kv_cache_interface.py: ChunkedLocalAttentionSpec`.

    >>> print(chunked_blocks(131_072, 8_192, 16_384, 16), chunked_blocks([4_096, 131_072], 8_192, 16_384, 16))
    1536 [ 256 1536]
    """
    return cdiv(_smaller(_ints(chunk) + _ints(in_flight_tokens), _ints(num_tokens)), block_size)


def chunked_resident_blocks(num_tokens: IntLike, chunk: IntLike, block_size: IntLike) -> Ints:
    """Blocks that a sequence of n tokens holds under chunked local attention while it decodes.

        ceil(n / block) - floor(floor((n - 1) / C) * C / block)              [blocks]

    Only the chunk of the last token is read; a chunk before it goes back as a whole.

    >>> print(chunked_resident_blocks([8_191, 8_192, 8_193, 8_210], 8_192, 16))
    [512 512   1   2]
    """
    n, c = _ints(num_tokens), _ints(chunk)
    gone: Ints = _larger(0, n - 1) // c * c // _ints(block_size)
    return cdiv(n, block_size) - gone


def state_blocks(drafts: IntLike = 0, checkpoints: IntLike = 0, prefix_caching: npt.ArrayLike = True) -> Ints:
    """Blocks of state that start-up reserves for a sequence (Mamba, gated delta net, KDA ...), whatever its length.

        1 + drafts, with prefix caching 2 + drafts + checkpoints             [blocks]

    Each draft token needs a state to fall back to; caching keeps the state of the last block end.
    Source: vLLM 0.32, `v1/kv_cache_interface.py: MambaSpec`.

    >>> print(state_blocks(), state_blocks(drafts=[0, 2], prefix_caching=False))
    2 [1 3]
    """
    cached = _ints(prefix_caching)
    return 1 + _ints(drafts) + cached * (1 + _ints(checkpoints))


# --- a pool of blocks ---------------------------------------------------------------------------------------


def pool_blocks(available_bytes: IntLike, bytes_per_block: IntLike) -> Ints:
    """Blocks that fit some memory: floor(bytes / bytes_per_block). One of them, the null block, serves nobody.

    >>> print(pool_blocks(40 * 2**30, 2**21), pool_blocks([2**30, 40 * 2**30], 2**21))
    20480 [  512 20480]
    """
    return _ints(available_bytes) // _ints(bytes_per_block)


def max_concurrency(num_blocks: IntLike, blocks_per_sequence: IntLike) -> Floats:
    """The "Maximum concurrency" that vLLM prints: blocks / blocks of one sequence, null block included.

    >>> print(max_concurrency(20_480, 8_192), max_concurrency(20_480, [8_192, 10_240]))
    2.5 [2.5 2. ]
    """
    return _ints(num_blocks) / _ints(blocks_per_sequence)


def num_sequences(num_blocks: IntLike, blocks_per_sequence: IntLike) -> Ints:
    """Whole sequences that fit the pool at once: floor((blocks - 1) / blocks of one sequence).

    >>> print(num_sequences(20_480, 8_192), num_sequences([2_048, 2_049], 2_048))
    2 [0 1]
    """
    sequences: Ints = _larger(0, _ints(num_blocks) - 1) // _ints(blocks_per_sequence)
    return sequences


def longest_trace(num_traces: IntLike, num_blocks: IntLike, block_size: IntLike) -> Ints:
    """Tokens that N equal traces may reach together, all layers remembering everything.

        floor((blocks - 1) / N) * block                                      [tokens]

    >>> print(longest_trace(32, 20_480, 16), longest_trace([1, 32, 50_000], 20_480, 16))
    10224 [327664  10224      0]
    """
    return num_sequences(num_blocks, num_traces) * _ints(block_size)


# --- branches that share a prefix ---------------------------------------------------------------------------


def shared_blocks(num_tokens: IntLike, block_size: IntLike = 16, sharing: Sharing = "full_block") -> Ints:
    """Leading blocks of a prefix of n tokens that all who branch off at its end share.

    * `full_block`: floor(n / block). The block that a branch point cuts is each child's own.
    * `vllm`: floor((n - 1) / block). A child is a new request, and a prefix hit stops one token short
      of its prompt's end, so that there is something to compute; a cut at a block's end costs each child a block.
    * `none`: 0.

    Source: vLLM 0.32, `v1/core/kv_cache_manager.py: get_computed_blocks`.

    >>> print(shared_blocks(4_000), shared_blocks([4_000, 4_008], sharing="vllm"))
    250 [249 250]
    """
    n = _ints(num_tokens)
    if sharing == "none":
        return 0 * n
    cut = n - 1 if sharing == "vllm" else n
    shared: Ints = _larger(0, cut) // _ints(block_size)
    return shared


def tree_tokens(nodes: IntLike, tokens: IntLike, *, shared: bool = True) -> Ints:
    """Tokens of a tree of branches, given level by level along the first axis.

    Level 0 is the prompt; `nodes[i]` counts the distinct segments at depth i and `tokens[i]` their lengths.
    Shared, each segment is stored once: sum(nodes * tokens). Apart, each leaf stores its whole path.

    >>> print(tree_tokens([1, 8], [4_000, 1_000]), tree_tokens([1, 8], [4_000, 1_000], shared=False))
    12000 40000
    >>> print(tree_tokens([[1, 1], [8, 64]], [[4_000], [1_000]]))  # 8 branches, and 64
    [12000 68000]
    """
    n, t = np.broadcast_arrays(_ints(nodes), _ints(tokens))
    total: Ints = (n * t).sum(axis=0) if shared else n[-1] * t.sum(axis=0)
    return total


def tree_blocks(
    nodes: IntLike, tokens: IntLike, block_size: IntLike = 16, *, sharing: Sharing = "full_block"
) -> Ints:
    """Blocks of a tree of branches, given level by level as in `tree_tokens`; its leaves are alive, no other node.

    With c_i the tokens from the root to the end of depth i, and s_i = shared_blocks(c_i):

        sum_i nodes_i * (s_i - s_(i-1)) + leaves * (ceil(c_last / block) - s_(last-1))

    >>> print(*(tree_blocks([1, 8], [4_000, 1_000], sharing=s) for s in ("none", "full_block", "vllm")))
    2504 754 761
    >>> print(tree_blocks([[1, 1], [8, 64]], [[4_000], [1_000]]))
    [ 754 4282]
    """
    n, t = np.broadcast_arrays(_ints(nodes), _ints(tokens))
    ends = t.cumsum(axis=0)
    shared = shared_blocks(ends, block_size, sharing)[:-1]
    inner: Ints = (n[:-1] * np.diff(shared, axis=0, prepend=np.zeros_like(shared[:1]))).sum(axis=0)
    last = shared[-1] if len(shared) else 0
    blocks: Ints = inner + n[-1] * (cdiv(ends[-1], block_size) - last)
    return blocks


# --- where the time goes ------------------------------------------------------------------------------------


def balance_context(weight_bytes: npt.ArrayLike, bytes_per_token: npt.ArrayLike) -> Floats:
    """Tokens of context, summed over the batch, at which a decode step reads as much KV as weights.

        weight_bytes / bytes_per_token                                       [tokens]

    Beyond it the batch's context, not the model's size, sets the time of a step.

    >>> print(f"{balance_context(16.06e9, 131_072):,.0f}")  # an 8B model in 16 bits
    122,528
    >>> print(balance_context(16.06e9, [131_072, 65_536]).round())
    [122528. 245056.]
    """
    return _floats(weight_bytes) / _floats(bytes_per_token)


def compute_bound_batch(
    weight_bytes: npt.ArrayLike,
    active_params: npt.ArrayLike,
    flops_per_s: npt.ArrayLike,
    bytes_per_s: npt.ArrayLike,
) -> Floats:
    """Sequences in a decode step at which the linear layers turn from memory-bound to compute-bound.

    Reading the weights takes as long as multiplying by them, 2 FLOP a parameter and token:

        B = weight_bytes / bytes_per_s * flops_per_s / (2 * active_params)   [sequences]

    A mixture of experts reads nearly all its weights and uses few, so its B is larger by total / active.
    Source: the roofline model, Williams et al., CACM 52(4), 2009.

    >>> print(compute_bound_batch(16.06e9, 8.03e9, 989e12, 3.35e12).round())  # 16 bits on an H100 SXM
    295.0
    >>> print(compute_bound_batch([16.06e9, 8.03e9], 8.03e9, 989e12, 3.35e12).round())  # 16 bits, 8 bits
    [295. 148.]
    """
    read_s = np.asarray(weight_bytes, dtype=np.float64) / np.asarray(bytes_per_s, dtype=np.float64)
    return (
        read_s * np.asarray(flops_per_s, dtype=np.float64) / (2 * np.asarray(active_params, dtype=np.float64))
    )
