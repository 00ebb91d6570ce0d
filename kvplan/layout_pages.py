"""From a model to pages: what each layer stores per block on one rank, and how large a block is.

Resolves what the engine resolves at start-up: KV dtype, attention backend, block size, state dtypes and
padding. Mirrors vLLM 0.32 on CUDA; `layout` turns the pages into groups and blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kvplan.engine_args import EngineArgs
from kvplan.errors import KvplanError, did_you_mean
from kvplan.layout_backends import (
    INDEXER,
    KV_DTYPES,
    Backend,
    Capability,
    LayerNeeds,
    is_quantized,
    select_backend,
)
from kvplan.layout_groups import Layer, Page
from kvplan.layout_states import CHECKPOINT_FAMILIES, ELEMENT_BYTES, state_bytes
from kvplan.model import AttentionKind, AttentionSpec, ModelSpec

DEFAULT_BLOCK_SIZE = 16

_PACKED_LATENT = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
"""Bytes a token and layer of DeepSeek's packed latent formats; not a dtype times the latent's width."""
_PACKED_HEADS = ("nvfp4", "turboquant_", "int4_per", "int8_per", "fp8_per")
_TURBOQUANT_BITS = {"k8v4": (8, 4), "4bit_nc": (4, 4), "k3v4_nc": (3, 4), "3bit_nc": (3, 3)}
"""Bits of a key and of a value element."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Every layer that owns KV, as one rank of its pipeline stage stores it."""

    layers: tuple[Layer, ...]
    block_size: int
    """The engine's --block-size after start-up has adjusted it."""
    kv_cache_dtype: str
    backends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Mixer:
    """One part of a layer that remembers."""

    spec: AttentionSpec
    stage: int
    kv_dtype: str = "auto"
    backend: Backend | None = None
    """None for states."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Block size, and the sizes that some pages are padded to (0: not padded)."""

    block_size: int
    state_page_bytes: int = 0
    skipped_page_bytes: int = 0


def model_pages(
    model: ModelSpec, args: EngineArgs, capability: Capability, draft: ModelSpec | None = None
) -> Pages:
    """Work out the page of every layer.

    Args:
        model: the target model.
        args: the engine's flags, defaults resolved.
        capability: compute capability of the GPU.
        draft: the draft model of `speculative_method` eagle or draft_model.

    Raises:
        KvplanError: what the engine refuses at start-up: uneven sharding, a KV dtype that the GPU or the
            model does not take, a block size that no backend takes.
    """
    check_sharding(model, args)
    args = args.model_copy(update={"kv_cache_dtype": resolve_kv_dtype(model, args, capability)})
    mixers = _choose_backends(_mixers(model, args, draft), model, args, capability)
    layers: list[Layer] = []
    block_sizes = []
    for stage in range(args.pipeline_parallel_size):  # each stage settles its own sizes, by its own layers
        here = [m for m in mixers if m.stage == stage]
        sizes = _block_sizes(model, args, here)
        block_sizes.append(sizes.block_size)
        layers += [Layer(stage, page) for m in here for page in _pages(m, model, args, sizes)]
    dtypes = [m.kv_dtype for m in mixers if m.backend and m.kv_dtype != "auto"]
    names = tuple(b.name for b in _distinct_backends(mixers))
    return Pages(tuple(layers), block_sizes[0], dtypes[0] if dtypes else "auto", names)


def check_sharding(model: ModelSpec, args: EngineArgs) -> None:
    """Refuse the parallel sizes that the engine refuses.

    Raises:
        KvplanError: heads that do not divide, more stages than layers, a dcp that has no copies to split.
    """
    tp, dcp = args.tensor_parallel_size, args.decode_context_parallel_size
    if args.pipeline_parallel_size > len(model.layers):
        raise KvplanError(
            f"pipeline_parallel_size {args.pipeline_parallel_size} exceeds {len(model.layers)} layers"
        )
    if dcp > tp or tp % dcp:
        raise KvplanError(f"decode_context_parallel_size {dcp} must divide tensor_parallel_size {tp}")
    for spec in {m for layer in model.layers for m in layer.mixers}:
        if spec.kind is AttentionKind.SLIDING and dcp > 1:
            raise KvplanError("decode_context_parallel_size does not work with sliding windows")
        if spec.kind not in (AttentionKind.STATE, AttentionKind.NONE):
            _check_heads(spec, tp, dcp)


def _check_heads(spec: AttentionSpec, tp: int, dcp: int) -> None:
    if spec.num_heads % tp:
        raise KvplanError(
            f"tensor_parallel_size {tp} does not divide the model's {spec.num_heads} attention heads"
        )
    kv_heads = spec.num_kv_heads
    if spec.kind is AttentionKind.MLA:
        return
    if max(kv_heads, tp) % min(kv_heads, tp):
        raise KvplanError(
            f"tensor_parallel_size {tp} and the model's {kv_heads} KV heads do not divide each other"
        )
    if dcp > 1 and tp <= kv_heads:
        raise KvplanError(
            f"decode_context_parallel_size needs more tensor-parallel ranks ({tp}) than KV heads ({kv_heads})"
        )
    if dcp > 1 and (dcp > tp // kv_heads or spec.num_heads // kv_heads % dcp):
        raise KvplanError(
            f"decode_context_parallel_size {dcp} must be at most {tp // kv_heads} (ranks per KV head) and "
            f"divide {spec.num_heads // kv_heads} (query heads per KV head)"
        )


def pipeline_stages(num_layers: int, num_stages: int) -> list[int]:
    """Return the number of layers of each pipeline stage.

    Layers that are left over go to the stages before the last one, from the back.
    Source: vLLM 0.32, `distributed/utils.py: get_pp_indices`.

    >>> pipeline_stages(62, 4)
    [15, 16, 16, 15]
    """
    sizes = [num_layers // num_stages] * num_stages
    for i in range(2, num_layers % num_stages + 2):
        sizes[-i] += 1
    return sizes


def resolve_kv_dtype(model: ModelSpec, args: EngineArgs, capability: Capability) -> str:
    """Return the KV dtype that `auto` stands for, or the user's own.

    Raises:
        KvplanError: not a KV dtype.
    """
    dtype = args.kv_cache_dtype
    if dtype not in KV_DTYPES:
        raise KvplanError(f"unknown kv_cache_dtype {dtype!r}{did_you_mean(dtype, KV_DTYPES)}")
    if dtype == "auto":
        dtype = _checkpoint_kv_dtype(model)
    if model.architecture == "GlmMoeDsaForCausalLM" and dtype == "auto" and capability[0] == 10:
        return "fp8_e4m3"
    if model.architecture == "DeepseekV32ForCausalLM" and dtype == "bfloat16":
        return "auto"
    return dtype


def _checkpoint_kv_dtype(model: ModelSpec) -> str:
    """What a quantised checkpoint asks for: compressed-tensors' kv_cache_scheme, ModelOpt's kv_cache_quant_algo."""
    return "auto"


def model_dtype(model: ModelSpec, args: EngineArgs) -> str:
    """Return the dtype of activations: the flag, else the config's; float32 checkpoints run in 16 bits."""
    dtype = {"half": "float16", "float": "float32"}.get(args.dtype, args.dtype)
    if dtype == "auto":
        return "bfloat16" if model.dtype == "float32" else model.dtype
    return dtype


def _mixers(model: ModelSpec, args: EngineArgs, draft: ModelSpec | None) -> list[_Mixer]:
    """Every part of every layer that owns KV, drafting layers last; they live on the last stage."""
    num_stages = args.pipeline_parallel_size
    stage_of = [s for s, n in enumerate(pipeline_stages(len(model.layers), num_stages)) for _ in range(n)]
    skipped = _skipped_layers(model, args)
    found = []
    for i, layer in enumerate(model.layers):
        for spec in layer.mixers:
            windowed = spec.kind is AttentionKind.SLIDING and "sliding_window" in skipped
            dtype = "auto" if str(i) in skipped or windowed else args.kv_cache_dtype
            found.append(_Mixer(spec, stage_of[i], dtype))
    drafting, first = (draft.layers if draft else ()), 0
    if args.num_speculative_tokens and args.speculative_method == "mtp":
        if not model.mtp_layers:
            raise KvplanError(
                f"{model.name} has no multi-token-prediction layers; use another speculative method"
            )
        # Qwen and MiMo number their drafting layers from 0 again, so a skipped layer 0 skips both
        restarts = model.architecture.startswith(("Qwen3", "MiMoV2"))
        drafting, first = model.mtp_layers, 0 if restarts else len(model.layers)
    for i, layer in enumerate(drafting, first):
        dtype = "auto" if str(i) in skipped else args.kv_cache_dtype
        found += [_Mixer(spec, num_stages - 1, dtype) for spec in layer.mixers]
    return [m for m in found if m.spec.kind is not AttentionKind.NONE and m.spec.kv_shared_with is None]


def _skipped_layers(model: ModelSpec, args: EngineArgs) -> frozenset[str]:
    """Layers that keep the model's dtype: the user's, and TurboQuant's first and last two of dense models."""
    skipped = set(args.kv_cache_dtype_skip_layers)
    if args.kv_cache_dtype.startswith("turboquant_") and not model.is_hybrid:
        n = len(model.layers)
        edge = min(2, n // 2)
        skipped |= {str(i) for i in (*range(edge), *range(n - edge, n))}
    return frozenset(skipped)


def _choose_backends(
    mixers: list[_Mixer], model: ModelSpec, args: EngineArgs, capability: Capability
) -> list[_Mixer]:
    """Give every attention its backend, and the KV format that backend stores."""
    chosen = []
    cache: dict[tuple[AttentionSpec, str], tuple[Backend, str]] = {}
    forced = _forced_backend(model, args)
    for m in mixers:
        if m.spec.kind is AttentionKind.STATE:
            chosen.append(m)
            continue
        key = (m.spec, m.kv_dtype)
        if key not in cache:
            backend = select_backend(capability, _needs(m, model, args), forced)
            if m.kv_dtype == "auto" and backend.packs and m.kv_dtype not in backend.kv_dtypes:
                raise KvplanError(
                    f"chunked attention cannot skip layers under kv_cache_dtype {args.kv_cache_dtype}"
                )
            cache[key] = backend, _stored_dtype(backend, m.kv_dtype)
        chosen.append(replace(m, backend=cache[key][0], kv_dtype=cache[key][1]))
    return chosen


def _forced_backend(model: ModelSpec, args: EngineArgs) -> str | None:
    """Gemma 4 mixes head sizes that FlashAttention 3 cannot serve: all its layers go to Triton."""
    if args.attention_backend is None and model.architecture.startswith("Gemma4"):
        head_dims = {layer.attention.head_dim for layer in model.layers}
        return "TRITON_ATTN" if len(head_dims) > 1 else None
    return args.attention_backend


def _needs(m: _Mixer, model: ModelSpec, args: EngineArgs) -> LayerNeeds:
    spec, tp = m.spec, args.tensor_parallel_size
    is_mla = spec.kind is AttentionKind.MLA
    return LayerNeeds(
        head_size=spec.kv_lora_rank + spec.qk_rope_head_dim if is_mla else spec.head_dim,
        # chunked attention picks its kernel before it learns that it is skipped from quantisation
        kv_dtype=args.kv_cache_dtype if spec.kind is AttentionKind.CHUNKED else m.kv_dtype,
        num_heads=spec.num_heads // tp,
        num_kv_heads=1 if is_mla else max(1, spec.num_kv_heads // tp),
        dtype=model_dtype(model, args),
        block_size=args.block_size,
        is_mla=is_mla,
        is_sparse=spec.index_topk > 0,
        has_sinks=spec.sinks,
        has_window=spec.kind is AttentionKind.SLIDING,
        dcp=args.decode_context_parallel_size,
        v_head_size=spec.v_head_dim,
        qk_nope_head_dim=spec.qk_nope_head_dim,
        qk_rope_head_dim=spec.qk_rope_head_dim,
        kv_lora_rank=spec.kv_lora_rank,
        index_topk=spec.index_topk,
    )


def _stored_dtype(backend: Backend, kv_dtype: str) -> str:
    """The format a backend really stores: DeepSeek's packed latents, its own packing, or a byte an element."""
    if backend.name == "FLASHMLA_SPARSE" and is_quantized(kv_dtype) and kv_dtype != "nvfp4_ds_mla":
        return "fp8_ds_mla"
    if backend.name == "FLASHINFER_MLA_SPARSE_SM120" and kv_dtype in ("auto", "fp8", "fp8_e4m3"):
        return "fp8_ds_mla"
    if kv_dtype.startswith(_PACKED_HEADS) and not backend.is_mla and kv_dtype not in backend.packs:
        return "fp8"
    return kv_dtype


def _distinct_backends(mixers: list[_Mixer]) -> list[Backend]:
    """The attention backends in use, in layer order; an indexer counts as one."""
    found: dict[str, Backend] = {}
    for m in mixers:
        if m.backend:
            if m.spec.index_head_dim:
                found.setdefault(INDEXER.name, INDEXER)
            found.setdefault(m.backend.name, m.backend)
    return list(found.values())


def _block_sizes(model: ModelSpec, args: EngineArgs, mixers: list[_Mixer]) -> _Sizes:
    """Settle the block size: backends first, then room for a state, then room for layers kept unquantised."""
    backends = _distinct_backends(mixers)
    _check_layouts(backends)
    sizes = _Sizes(args.block_size or _preferred_block_size(backends))
    attention = next((m for m in mixers if m.backend), None)
    states = [m.spec.state for m in mixers if m.spec.state]
    skipped = _skipped_layers(model, args)
    if attention is None:
        return sizes
    if states:
        largest = max(state_bytes(s, args, model_dtype(model, args)) for s in states)
        sizes = _cover_state(sizes, largest, attention, bool(skipped), model, args, backends)
    if skipped:
        sizes = _cover_skipped(sizes, attention, model, args, backends)
    return sizes


def _check_layouts(backends: list[Backend]) -> None:
    """Backends that share a pool must agree on how a block's bytes are ordered."""
    orders = [set(b.layouts) for b in backends if b.layouts]
    if orders and not set.intersection(*orders):
        names = " and ".join(b.name for b in backends)
        raise KvplanError(f"the backends {names} share no KV cache layout; try another kv_cache_dtype")


def _preferred_block_size(backends: list[Backend]) -> int:
    """16 if every backend takes it, else the smallest size that all take."""
    if not backends or all(b.takes_block(DEFAULT_BLOCK_SIZE) for b in backends):
        return DEFAULT_BLOCK_SIZE
    if len(backends) == 1:
        return min(backends[0].block_sizes)
    candidates = {math.lcm(a, b) for a in backends[0].block_sizes for b in backends[1].block_sizes}
    return min(c for c in candidates if all(b.takes_block(c) for b in backends))


def _cover_state(
    sizes: _Sizes,
    state: int,
    attention: _Mixer,
    has_skipped: bool,
    model: ModelSpec,
    args: EngineArgs,
    backends: list[Backend],
) -> _Sizes:
    """Lengthen attention blocks until a page holds a state; pad the state to that page."""
    turbo, dtype = args.kv_cache_dtype.startswith("turboquant_"), model_dtype(model, args)
    head = _model_head(model, attention.spec)
    format_ = args.kv_cache_dtype if turbo else _reckoned_format(backends[0], args)
    per_token = token_bytes(head, format_, dtype, args)
    if has_skipped and turbo:
        per_token = math.lcm(per_token, token_bytes(head, "auto", dtype, args))
    step = max(min(backends[0].block_sizes), sizes.block_size)
    if attention.spec.kind is AttentionKind.MLA:
        step = max(step, 128)  # keeps the kernel blocks of a split block a multiple of 128 tokens
    block = step * -(-state // (step * per_token))
    unit = math.lcm(*(min(b.block_sizes) for b in backends))
    block = max(sizes.block_size, unit * -(-block // unit))
    page = block * per_token
    return replace(sizes, block_size=block, state_page_bytes=0 if page == state else page)


def _model_head(model: ModelSpec, first: AttentionSpec) -> AttentionSpec:
    """The one head shape that block sizes are reckoned by, the engine's own short cut: the first layer's KV heads,
    the widest head of any layer, V as wide as K. Formats too go by the first layer's backend."""
    if first.kind is AttentionKind.MLA:
        return first
    widest = max(layer.attention.head_dim for layer in model.layers)
    return replace(first, head_dim=widest, v_head_dim=widest)


def _reckoned_format(first: Backend, args: EngineArgs) -> str:
    stored = _stored_dtype(first, args.kv_cache_dtype)
    return "fp8" if stored in _PACKED_LATENT else stored


def _cover_skipped(
    sizes: _Sizes, attention: _Mixer, model: ModelSpec, args: EngineArgs, backends: list[Backend]
) -> _Sizes:
    """Lengthen the quantised layers' blocks until their page holds an unquantised layer's smallest one."""
    dtype = model_dtype(model, args)
    head = _model_head(model, attention.spec)
    quantized = token_bytes(head, _reckoned_format(backends[0], args), dtype, args)
    plain = token_bytes(head, "auto", dtype, args)
    if plain == quantized:
        return sizes
    kernel = min(backends[0].block_sizes)
    unit = max(kernel, sizes.block_size)
    required = max(plain * kernel, sizes.state_page_bytes)
    block = max(sizes.block_size, unit * -(-required // (unit * quantized)))
    shared = block * quantized
    return _Sizes(block, shared if sizes.state_page_bytes else 0, shared)


def token_bytes(spec: AttentionSpec, kv_dtype: str, dtype: str, args: EngineArgs) -> int:
    """Return the bytes one token takes in one layer of one rank.

    Plain formats: KV heads per rank x (K width + V width) x element size. Per-token-head formats add a
    4-byte scale per head and side; nvfp4 is width / 2 + width / 16 a side; TurboQuant packs bits and adds
    a 2-byte norm (keys below 8 bits) and 4 bytes of scale and zero (values). A latent (MLA) is whole on every rank.

    Raises:
        KvplanError: nvfp4 with K and V of different widths.
    """
    if spec.kind is AttentionKind.MLA:
        width = spec.kv_lora_rank + spec.qk_rope_head_dim
        return _PACKED_LATENT.get(kv_dtype) or width * element_bytes(kv_dtype, dtype)
    heads = max(1, spec.num_kv_heads // args.tensor_parallel_size)
    return heads * _head_bytes(spec.head_dim, spec.v_head_dim or spec.head_dim, kv_dtype, dtype)


def _head_bytes(k: int, v: int, kv_dtype: str, dtype: str) -> int:
    if kv_dtype == "int4_per_token_head":
        return k // 2 + v // 2 + 8
    if kv_dtype.endswith("_per_token_head"):
        return k + v + 8
    if kv_dtype.startswith("nvfp4"):
        if k != v:
            raise KvplanError("an nvfp4 KV cache needs K and V heads of equal width")
        return 2 * (k // 2 + k // 16)
    if kv_dtype.startswith("turboquant_"):
        key_bits, value_bits = _TURBOQUANT_BITS[kv_dtype.removeprefix("turboquant_")]
        keys = k if key_bits == 8 else math.ceil(k * key_bits / 8) + 2
        slot = keys + math.ceil(k * value_bits / 8) + 4
        return slot + slot % 2
    return (k + v) * element_bytes(kv_dtype, dtype)


def element_bytes(kv_dtype: str, dtype: str) -> int:
    """Return the bytes of one stored element: 1 for fp8 and int8, else the dtype's own."""
    if kv_dtype == "auto":
        return ELEMENT_BYTES[dtype]
    return ELEMENT_BYTES.get(kv_dtype, 1)


def _pages(m: _Mixer, model: ModelSpec, args: EngineArgs, sizes: _Sizes) -> list[Page]:
    """The page of a mixer, and its indexer's if it has one."""
    if m.backend is None:
        return [_state_page(m.spec, model, args, sizes)]
    spec, dtype = m.spec, model_dtype(model, args)
    per_token = token_bytes(spec, m.kv_dtype, dtype, args)
    heads = max(1, spec.num_kv_heads // args.tensor_parallel_size)
    shape = (heads, spec.head_dim, spec.v_head_dim, _format_name(m, dtype))
    page = Page(spec.kind, sizes.block_size, per_token, window=spec.window, shape=shape)
    if spec.kind is AttentionKind.SLIDING:
        budget = sizes.skipped_page_bytes or per_token * sizes.block_size
        block = m.backend.largest_block_within(budget // per_token)
        page = replace(
            page, block_size=block, padded_bytes=sizes.skipped_page_bytes, retained=_retained(model, args)
        )
        if page.padded_bytes and page.padded_bytes < page.content_bytes:
            raise KvplanError(
                f"kv_cache_dtype_skip_layers: a window's page of {page.content_bytes} bytes exceeds the pool's"
            )
    if not spec.index_head_dim:
        return [page]
    # one fp8 key of the index head, and a 4-byte scale per 128 of its elements
    width = spec.index_head_dim + spec.index_head_dim // 128 * 4
    return [page, Page(AttentionKind.MLA, sizes.block_size, width, shape=("indexer", width))]


def _format_name(m: _Mixer, dtype: str) -> str:
    """Formats that may share a group: all fp8 are one, and `auto` is the model's dtype (latents go by the flag)."""
    if m.spec.kind is AttentionKind.MLA:
        return m.kv_dtype
    if m.kv_dtype in ("fp8", "fp8_e4m3", "fp8_e5m2"):
        return "fp8"
    return dtype if m.kv_dtype == "auto" else m.kv_dtype


def _retained(model: ModelSpec, args: EngineArgs) -> int:
    """Tokens kept behind a window because several MTP modules re-read the end of a prefill."""
    if args.speculative_method != "mtp":
        return 0
    drafts = args.num_speculative_tokens
    return drafts - 1 if min(len(model.mtp_layers), drafts) > 1 else 0


def _state_page(spec: AttentionSpec, model: ModelSpec, args: EngineArgs, sizes: _Sizes) -> Page:
    assert spec.state is not None
    aligned = args.enable_prefix_caching is not False
    return Page(
        AttentionKind.STATE,
        sizes.block_size if aligned else _max_model_len(model, args),
        state_bytes=state_bytes(spec.state, args, model_dtype(model, args)),
        padded_bytes=sizes.state_page_bytes,
        shape=(spec.state.family,),
        speculative_blocks=args.num_speculative_tokens,
        checkpoint_blocks=int(spec.state.family in CHECKPOINT_FAMILIES),
        aligned=aligned,
    )


def _max_model_len(model: ModelSpec, args: EngineArgs) -> int:
    length = args.max_model_len
    return model.max_model_len if length is None or length == -1 else length
