"""From a model to pages: what each layer stores per block on one rank. `layout` turns pages into groups and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

from kvplan.engines.flags import EngineArgs
from kvplan.engines.speculative_config import speculation
from kvplan.formulas.capacity import kv_heads_per_rank
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import cdiv
from kvplan.memory.kv.backends import INDEXER
from kvplan.memory.kv.formats import group_format, indexer_token_bytes, token_bytes
from kvplan.memory.kv.groups import Layer, Page
from kvplan.memory.kv.mixers import LayoutSetup, Mixer, distinct_backends, find_mixers
from kvplan.memory.kv.sizes import Sizes, checkpoint_alignment, settle_sizes
from kvplan.memory.kv.states import state_bytes
from kvplan.models.spec import AttentionKind, AttentionSpec, ModelSpec


@dataclass(frozen=True, slots=True)
class Pages:
    """Every layer that owns KV, as one rank of its pipeline stage stores it."""

    layers: tuple[Layer, ...]
    block_size: int
    """The engine's --block-size after start-up has adjusted it (on the first stage)."""
    kv_cache_dtype: str
    backends: tuple[str, ...]
    packed: bool = False
    """Groups are packed by `groups.pack`: a block's pages lie together, and need not be of one size."""
    orders: tuple[str, ...] = ()
    """Orders of bytes that its own pages are made for; none: any."""


@lru_cache(64)
def model_pages(setup: LayoutSetup, draft: ModelSpec | None = None) -> Pages:
    """Work out the page of every layer. The same for pools of any size, hence remembered.

    Raises:
        KvplanError: what the engine refuses at start-up: a KV dtype that the GPU or the model does not take, a
            block size that no backend takes.
    """
    mixers, retained = find_mixers(setup, draft), _retained(setup)
    layers: list[Layer] = []
    block_sizes = []
    for stage in range(setup.args.pipeline_parallel_size):
        here = [m for m in mixers if m.stage == stage]
        _check_latents(setup, here)
        sizes = settle_sizes(setup, here)
        block_sizes.append(sizes.block_size)
        made = (page for m in here for page in _pages(setup, m, sizes))
        layers += [Layer(stage, _keep_more(page, retained)) for page in made]
        if stage == setup.args.pipeline_parallel_size - 1 and hidden_states_kept(setup.args):
            layers.append(Layer(stage, _hidden_states_page(setup, sizes.block_size)))
    formats = [m.kv_format for m in mixers if m.backend and m.kv_format != "auto"]
    names = tuple(b.name for b in distinct_backends(mixers))
    own = [m.spec for m in mixers if m.spec.ring_bytes or m.spec.latent_row]
    packed = bool(own) or any(m.spec.kind is AttentionKind.COMPRESSED for m in mixers)
    heads_first = any(spec.is_latent for spec in own)
    orders = ("BLHNC",) if heads_first else ("BLNHC", "BLHNC") if packed else ()
    return Pages(tuple(layers), block_sizes[0], formats[0] if formats else "auto", names, packed, orders)


def _pages(setup: LayoutSetup, m: Mixer, sizes: Sizes) -> list[Page]:
    """The page of a mixer, before it that of its convolutions, behind it that of its indexer if it has one."""
    if m.spec.conv_window:
        rest = replace(m, spec=replace(m.spec, conv_window=0))
        return [_conv_page(setup, m.spec), *_pages(setup, rest, sizes)]
    if m.spec.kind is AttentionKind.STATE:
        return [_state_page(setup, m, sizes)]
    if m.spec.kind is AttentionKind.SLIDING:
        return [_window_page(setup, m, sizes)]
    if m.spec.kind is AttentionKind.COMPRESSED:
        shared = m.spec.shares_latents
        return (_shared_latent_pages if shared else _compressed_pages)(setup, m.spec, sizes.block_size)
    page = Page(
        m.spec.kind,
        sizes.block_size,
        _token_bytes(setup, m),
        window=m.spec.window,
        reserved=(setup.args.max_num_batched_tokens or 0) if m.spec.kind is AttentionKind.CROSS else 0,
        shape=_shape(setup, m),
    )
    if not m.spec.index_head_dim:
        return [page]
    width = indexer_token_bytes(m.spec.index_head_dim, m.spec.index_itemsize)
    if m.spec.ring_bytes:
        return _pooled_pages(setup, m.spec, page, width)
    keys = Page(AttentionKind.MLA, sizes.block_size, width, shape=("indexer", width))
    by_rows = m.spec.latent_row or setup.args.environment.kv_cache_layout.startswith("B")
    if by_rows:  # a row of the sparse kernel's cache; a kernel's block of the indexer's
        kernel = INDEXER.block_sizes[0]
        keys = replace(keys, stride=kernel * width if kernel < sizes.block_size else 1)
        return [replace(page, stride=page.token_bytes), keys]
    return [page, keys]


def hidden_states_kept(args: EngineArgs) -> int:
    """Hidden states of a token that lie in the pool (method extract_hidden_states)."""
    if args.speculative_method != "extract_hidden_states" or not args.num_speculative_tokens:
        return 0
    told = speculation(args.speculative_config).draft_model_config or {}
    return len((told.get("hf_config") or {}).get("eagle_aux_hidden_state_layer_ids") or ())


def _hidden_states_page(setup: LayoutSetup, block_size: int) -> Page:
    """States of layers within, each as wide as the model, whole on every rank and never quantised.

    Source: vLLM 0.32 `model_executor/models/extract_hidden_states.py`.
    """
    if any(layer.attention.kind is not AttentionKind.FULL or layer.beside for layer in setup.model.layers):
        raise KvplanError(
            "method extract_hidden_states: planned beside full attention alone, where its states take blocks of the"
            " same tokens"
        )
    width = hidden_states_kept(setup.args) * setup.model.hidden_size * (4 if setup.dtype == "float32" else 2)
    return Page(AttentionKind.FULL, block_size, width, shape=("hidden states", width))


def _conv_page(setup: LayoutSetup, a: AttentionSpec) -> Page:
    """Inputs of short convolutions, by KV head and always in 16 bits (vLLM 0.32 `inkling/nvidia/sconv_swa_attn.py`)."""
    if a.num_kv_heads % setup.tp:
        raise KvplanError(
            f"{setup.model.name}: states of its convolutions are cut by {a.num_kv_heads} KV heads,"
            f" not over {setup.tp} ranks"
        )
    heads = a.num_kv_heads // setup.tp
    token_bytes = 2 * heads * a.conv_width
    return Page(
        AttentionKind.SLIDING,
        a.conv_window,
        token_bytes,
        window=a.conv_window,
        shape=("conv", heads, a.conv_width),
    )


INDEX_KERNEL_TOKENS = 256
"""Tokens that DeepGEMM's kernel takes at once of a pooled indexer of latent attention; blocks keep them whole."""


def _pooled_pages(setup: LayoutSetup, a: AttentionSpec, page: Page, width: int) -> list[Page]:
    """Attention, its indexer's keys of `compress_ratio` tokens each, and the ring of those that wait for their pool.

    The ring has room for the keys of drafts too, in whole pools, whose number is a power of two for latent attention.
    Sparse kernels read a latent's cache as rows, which blocks must lie whole numbers of apart. Source: vLLM 0.32
    `glm5next/common/attention.py: Glm5NextTailCache`, `qwen4_exp/common/qsa_cache.py`; pages in the order in which
    they are registered.
    """
    size, ratio = page.block_size, a.compress_ratio
    pools = cdiv(ratio + setup.args.num_speculative_tokens, ratio)
    if a.kind is AttentionKind.MLA:
        pools = 1 << (pools - 1).bit_length()
    keys = Page(AttentionKind.MLA, size, padded_bytes=size // ratio * width, shape=("indexer", width))
    ring = Page(AttentionKind.CIRCULAR, pools * ratio, state_bytes=pools * a.ring_bytes, shape=("ring",))
    if size % ring.block_size:
        raise KvplanError(
            f"num_speculative_tokens {setup.args.num_speculative_tokens}: {ring.block_size} keys that wait for"
            f" their pool do not divide blocks of {size} tokens"
        )
    if a.kind is not AttentionKind.MLA:
        return [ring, page, keys]
    kernel = gcd(INDEX_KERNEL_TOKENS, size)
    keys = replace(keys, stride=kernel // ratio * width if kernel < size else 1)
    return [keys, ring, replace(page, stride=page.token_bytes)]


V4_LATENT_BYTES, V4_ALIGN = 584, 576
"""DeepSeek V4's pages: bytes of a packed latent of 512, and what pages are rounded up to (vLLM 0.32
`v1/attention/backends/mla/sparse_swa.py`, `models/deepseek_v4/compressor.py`)."""


def _rounded(kind: AttentionKind, tokens: int, content: int, what: str, window: int, unit: int) -> Page:
    size = cdiv(content, unit) * unit
    return Page(kind, tokens, content // tokens, window=window, padded_bytes=size, shape=(what,))


def _compressed_pages(setup: LayoutSetup, a: AttentionSpec, block_size: int) -> list[Page]:
    """DeepSeek V4: the window; compressed latents; and, as windows too, what compressors have not yet summed up."""

    def page(kind: AttentionKind, tokens: int, content: int, what: str, window: int = 0) -> Page:
        return _rounded(kind, tokens, content, what, window, V4_ALIGN)

    ratio, window = a.compress_ratio, a.window
    found = [page(AttentionKind.SLIDING, a.window_block, a.window_block * V4_LATENT_BYTES, "window", window)]
    if not ratio:
        return found
    rows, (block, overlap) = block_size // ratio, (4, 2) if ratio == 4 else (8, 1)

    def waiting(width: int, what: str) -> Page:
        content = block * 2 * overlap * width * 4
        return page(AttentionKind.SLIDING, block, content, what, overlap * ratio)

    if a.index_head_dim:
        keys = rows * indexer_token_bytes(a.index_head_dim)
        found.append(page(AttentionKind.MLA, block_size, keys, "index"))
        found.append(waiting(a.index_head_dim, "index waiting"))
    found.append(page(AttentionKind.MLA, block_size, rows * V4_LATENT_BYTES, f"latent {ratio}"))
    return [*found, waiting(a.head_dim, f"waiting {ratio}")]


def _shared_latent_pages(setup: LayoutSetup, a: AttentionSpec, block_size: int) -> list[Page]:
    """DeepSeek V4.1: the window; where a layer makes latents, those, keys of their indexer, the ring of open pairs.

    Source: vLLM 0.32 `models/deepseek_v41/attention.py`, `compressor.py`.
    """
    record, latent, unit = V41_RECORDS.get(setup.capability[0], (V4_LATENT_BYTES, V4_LATENT_BYTES, V4_ALIGN))
    if setup.args.kv_cache_dtype == "fp8_ds_mla":
        latent = record
    window = _rounded(
        AttentionKind.SLIDING, a.window_block, a.window_block * record, "window", a.window, unit
    )
    found = [replace(window, bounded_replay=setup.args.swa_bounded_replay)]
    if not a.compress_ratio or a.latents_elsewhere:
        return found
    rows, keys = block_size // a.compress_ratio, indexer_token_bytes(a.index_head_dim)
    found = [
        _rounded(AttentionKind.MLA, block_size, rows * latent, f"latent {a.compress_ratio}", 0, unit),
        _rounded(AttentionKind.MLA, block_size, rows * keys, f"index {a.compress_ratio}", 0, unit),
        *found,
    ]
    if a.compress_ratio > 1:
        drafted = setup.args.num_speculative_tokens
        open_rows = max(8, 1 << (drafted + 1).bit_length())
        ring = open_rows * 2 * a.head_dim * 4
        found.insert(2, Page(AttentionKind.CIRCULAR, open_rows, state_bytes=ring, shape=("ring",)))
    return found


V41_RECORDS = {10: (528, 288, 512)}
"""Major version of a card -> bytes of a window's latent in MXFP8, of a compressed one in NVFP4, and what pages are
rounded up to: DeepSeek V4.1's own formats, which `auto` means there."""


def _token_bytes(setup: LayoutSetup, m: Mixer) -> int:
    return token_bytes(m.spec, m.kv_format, setup.dtype, setup.tp)


def _shape(setup: LayoutSetup, m: Mixer) -> tuple[int | str, ...]:
    heads = int(kv_heads_per_rank(m.spec.num_kv_heads, setup.tp))
    return heads, m.spec.head_dim, m.spec.v_head_dim, group_format(m.spec, m.kv_format, setup.dtype)


def _window_page(setup: LayoutSetup, m: Mixer, sizes: Sizes) -> Page:
    """A window chooses its own block: the largest its kernel takes within the page of the other layers."""
    assert m.backend is not None
    per_token = _token_bytes(setup, m)
    budget = sizes.skipped_page_bytes or per_token * sizes.block_size
    page = Page(
        AttentionKind.SLIDING,
        m.backend.largest_block_within(budget // per_token),
        per_token,
        window=m.spec.window,
        padded_bytes=sizes.skipped_page_bytes,
        shape=_shape(setup, m),
    )
    if page.num_bytes < page.content_bytes:
        raise KvplanError(
            f"kv_cache_dtype_skip_layers: a window's page takes {page.content_bytes} bytes, the pool's less"
        )
    return page


def _check_latents(setup: LayoutSetup, here: Sequence[Mixer]) -> None:
    """Latents that layers share are made on their own pipeline stage (vLLM 0.32 `models/deepseek_v41/attention.py`)."""
    first = next((m for m in here if m.spec.shares_latents and m.spec.compress_ratio), None)
    if first and first.spec.latents_elsewhere:
        size = setup.args.pipeline_parallel_size
        raise KvplanError(
            f"pipeline_parallel_size {size}: {setup.model.name}'s layers would read latents of another stage"
        )


def _keep_more(page: Page, tokens: int) -> Page:
    """Every window, of whatever it holds, keeps so many tokens behind it (vLLM 0.32 `get_kv_cache_configs`)."""
    return replace(page, retained=tokens) if tokens and page.kind is AttentionKind.SLIDING else page


def _retained(setup: LayoutSetup) -> int:
    """Tokens kept behind a window because several MTP modules re-read the end of a prefill."""
    drafts = setup.args.num_speculative_tokens if setup.args.speculative_method == "mtp" else 0
    return drafts - 1 if min(setup.model.num_mtp_modules, drafts) > 1 else 0


def _state_page(setup: LayoutSetup, m: Mixer, sizes: Sizes) -> Page:
    args, state = setup.args, m.spec.state
    assert state is not None
    aligned = args.enable_prefix_caching is not False
    whole = args.max_model_len if args.max_model_len not in (None, -1) else setup.model.default_max_model_len
    return Page(
        AttentionKind.STATE,
        (sizes.state_block_size or args.mamba_block_size or sizes.block_size) if aligned else whole or 1,
        state_bytes=state_bytes(state, args, setup.dtype),
        padded_bytes=sizes.state_page_bytes,
        shape=(state.family,),
        speculative_blocks=args.num_speculative_tokens,
        checkpoint_alignment=checkpoint_alignment(setup, state),
        replicated=state.family == "ngram_conv",
        aligned=aligned,
    )
