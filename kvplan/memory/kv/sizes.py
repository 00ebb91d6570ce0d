"""How many tokens a block holds, and what pages are padded to, so that unlike layers can share one pool.

The engine settles this on every pipeline stage by itself, by the backends of that stage's attention. It reckons with
short cuts of its own, mirrored here: one head shape for the whole model, the states that the model's class knows of
whether or not a layer keeps them there, and the first layer's backend for its KV format.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvplan.ground.errors import KvplanError
from kvplan.ground.units import cdiv
from kvplan.memory.kv.backends import Backend
from kvplan.memory.kv.formats import PACKED_LATENT, stored_format, token_bytes
from kvplan.memory.kv.mixers import LayoutSetup, Mixer, distinct_backends
from kvplan.memory.kv.states import state_bytes
from kvplan.models.spec import AttentionKind, StateSpec

DEFAULT_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Sizes:
    """Block size, and the sizes that some pages are padded to (0: not padded)."""

    block_size: int
    state_page_bytes: int = 0
    skipped_page_bytes: int = 0
    state_block_size: int = 0
    """Tokens between two kept states; 0: as `block_size`."""


GDN_CHECKPOINT_ALIGNMENT = 64
"""Tokens (vLLM `FLASHINFER_GDN_CHECKPOINT_ALIGNMENT`)."""
KDA_CHECKPOINT_ALIGNMENT = 16
"""Tokens (vLLM `kda_prefill_checkpoint_alignment`)."""


def gdn_exports_states(setup: LayoutSetup, state: StateSpec) -> bool:
    """Say whether FlashInfer runs a gated delta net's prefill and a state is kept per block.

    On Hopper always, on Blackwell with keys of 128 (and CUDA 13, for which vLLM's wheels are built). Source: vLLM 0.33
    `model_executor/layers/mamba/gdn/qwen_gdn_linear_attn.py: _resolve_gdn_prefill_backend`.
    """
    if state.family != "gdn_attention" or not setup.rules.gdn_exports_states:
        return False
    if setup.args.gdn_prefill_backend not in (None, "flashinfer"):
        return False
    major = setup.capability[0]
    flashinfer = setup.capability == (9, 0) or (major in (10, 12) and state["head_k_dim"] == 128)
    return flashinfer and setup.args.enable_prefix_caching is not False


def checkpoint_alignment(setup: LayoutSetup, state: StateSpec) -> int:
    """Tokens whose multiples a prefill can write a state at from inside a chunk; 0: it cannot, and has no block for it.

    Source: vLLM 0.32 `mamba_mixer2.py: get_kv_cache_spec` (any token), `kda_checkpoint.py` and
    `glm5next/common/kda.py: _resolve_kda_prefill_backend` (FlashKDA).
    """
    if state.family in setup.rules.checkpoint_families:
        return 1
    if gdn_exports_states(setup, state):
        return GDN_CHECKPOINT_ALIGNMENT
    asked = setup.args.kda_prefill_backend in (None, "auto", "flashkda")
    flash = asked and setup.capability[0] in (9, 10, 12) and setup.dtype == "bfloat16"
    exports = bool({"checkpoints", "exports"} & set(dict(state.facts))) and state["head_dim"] == 128
    return KDA_CHECKPOINT_ALIGNMENT if flash and exports else 0


def settle_sizes(setup: LayoutSetup, mixers: Sequence[Mixer]) -> Sizes:
    """Settle one stage's sizes: what backends take, then room for a state, then room for unquantised layers.

    Raises:
        KvplanError: backends that cannot share a pool.
    """
    backends = distinct_backends(mixers)
    _check_layouts(backends)
    sizes = Sizes(setup.args.block_size or preferred_block_size(backends))
    if not backends:
        return sizes
    states = (*setup.model.states, *setup.model.sized_for)
    if states:
        largest = max(state_bytes(state, setup.args, setup.dtype) for state in states)
        exports = any(gdn_exports_states(setup, state) for state in states)
        sizes = _cover_state(setup, mixers, sizes, largest, GDN_CHECKPOINT_ALIGNMENT if exports else 1)
        _check_whole_blocks(backends, sizes.block_size)
    return _cover_skipped(setup, mixers, sizes) if setup.skipped else sizes


def _check_whole_blocks(backends: Sequence[Backend], block_size: int) -> None:
    """b12x takes the pool's blocks whole; others cut them into their kernels' (vLLM 0.32 `supports_block_size`)."""
    for b in backends:
        if b.name == "B12X" and block_size not in b.block_sizes:
            raise KvplanError(f"blocks of {block_size} tokens, with room for a state: B12X takes 64 or 128")


def _check_layouts(backends: Sequence[Backend]) -> None:
    """Backends that share a pool must agree on how a block's bytes are ordered."""
    orders = [set(b.layouts) for b in backends if b.layouts]
    if orders and not set.intersection(*orders):
        names = " and ".join(b.name for b in backends)
        raise KvplanError(f"the backends {names} share no KV cache layout; try another kv_cache_dtype")


def preferred_block_size(backends: Sequence[Backend]) -> int:
    """Return 16 if every backend takes it, else the smallest size that all take."""
    if all(b.takes_block(DEFAULT_BLOCK_SIZE) for b in backends):
        return DEFAULT_BLOCK_SIZE
    candidates = {1}
    for b in backends:
        candidates = {math.lcm(c, size) for c in candidates for size in b.block_sizes}
    return min(c for c in candidates if all(b.takes_block(c) for b in backends))


def _cover_state(setup: LayoutSetup, mixers: Sequence[Mixer], sizes: Sizes, state: int, unit: int) -> Sizes:
    """Lengthen attention blocks until a page holds a state; pad the state to that page."""
    backends = distinct_backends(mixers)
    turbo = setup.args.kv_cache_dtype.startswith("turboquant_")
    per_token = _model_token_bytes(setup, mixers, "stored" if not turbo else "flag")
    if turbo and setup.skipped:
        per_token = math.lcm(per_token, _model_token_bytes(setup, mixers, "plain"))
    step = max(min(backends[0].block_sizes), sizes.block_size)
    first = _first_attention(mixers).spec
    if first.kind is AttentionKind.MLA and not first.sized_as:
        step = max(step, 128)  # keeps the kernel blocks of a split block a multiple of 128 tokens
    block = step * cdiv(state, step * per_token)
    unit = math.lcm(unit, *(min(b.block_sizes) for b in backends))
    block = max(sizes.block_size, unit * cdiv(block, unit))
    page = block * per_token
    return Sizes(block, state_page_bytes=0 if page == state else page, state_block_size=block)


def _cover_skipped(setup: LayoutSetup, mixers: Sequence[Mixer], sizes: Sizes) -> Sizes:
    """Lengthen the quantised layers' blocks until their page holds an unquantised layer's smallest one."""
    quantized, plain = _model_token_bytes(setup, mixers, "stored"), _model_token_bytes(setup, mixers, "plain")
    if plain == quantized:
        return sizes
    kernel = min(distinct_backends(mixers)[0].block_sizes)
    unit = max(kernel, sizes.block_size)
    required = max(plain * kernel, sizes.state_page_bytes)
    block = max(sizes.block_size, unit * cdiv(required, unit * quantized))
    shared = block * quantized
    return Sizes(block, shared if sizes.state_page_bytes else 0, shared, sizes.state_block_size)


def _first_attention(mixers: Sequence[Mixer]) -> Mixer:
    return next(m for m in mixers if m.backend)


def _model_token_bytes(setup: LayoutSetup, mixers: Sequence[Mixer], which: str) -> int:
    """Bytes a token by the engine's short cut: first layer's KV heads, widest head of any layer, V as wide as K.

    `stored` is the run's format as the first layer's backend would store it, `flag` the format of the flag,
    `plain` the model's dtype. Packed latents count a byte an element here.
    """
    spec = _first_attention(mixers).spec
    if spec.sized_as:
        heads, dim = spec.sized_as
        spec = replace(
            spec, kind=AttentionKind.FULL, num_kv_heads=heads, head_dim=dim, v_head_dim=dim, sized_as=None
        )
    elif spec.kind is not AttentionKind.MLA:
        widest = max(layer.attention.head_dim for layer in setup.model.layers)
        spec = replace(spec, head_dim=widest, v_head_dim=widest)
    stored = stored_format(distinct_backends(mixers)[0], setup.args.kv_cache_dtype)
    formats = {"plain": "auto", "flag": setup.args.kv_cache_dtype, "stored": stored}
    found = formats[which]
    return token_bytes(spec, "fp8" if found in PACKED_LATENT else found, setup.dtype, setup.tp)
