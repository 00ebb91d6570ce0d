"""Which attention backend the engine picks for a layer, and what that means for KV blocks.

Mirrors the choice of vLLM 0.32 on CUDA: a priority list per GPU generation, the first backend that takes
the layer's head size, KV dtype, sinks and so on. Knows nothing of models, memory or groups. FlashInfer,
DeepGEMM and FlashMLA count as installed; FlashAttention 4, TokenSpeed, b12x, HPC and FlashInfer's sparse MLA for
Hopper do not, unless they are asked for by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvplan.formulas.graphs import Support
from kvplan.ground.errors import KvplanError, did_you_mean

Capability = tuple[int, int]
"""CUDA compute capability, e.g. (9, 0) for Hopper."""

KV_DTYPES = (
    *("auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla", "nvfp4_ds_mla"),
    *("turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc"),
    *("int4_per_token_head", "int8_per_token_head", "fp8_per_token_head", "nvfp4", "nvfp4_4over6"),
)
"""Values of --kv-cache-dtype that the mirrored version knows on CUDA (ultraquant and fp8_inc left out)."""

_AUTO = ("auto", "float16", "bfloat16")
_FP8 = (*_AUTO, "fp8", "fp8_e4m3")
_PER_HEAD = ("int4_per_token_head", "int8_per_token_head", "fp8_per_token_head")
_ANY_BUT_E5M2 = tuple(d for d in KV_DTYPES if d != "fp8_e5m2")
_TURBO = ("turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc")


@dataclass(frozen=True, slots=True)
class LayerNeeds:
    """What one layer asks of a backend; head counts are those of one rank."""

    head_size: int
    kv_dtype: str
    num_heads: int = 1
    num_kv_heads: int = 1
    dtype: str = "bfloat16"
    block_size: int | None = None
    """The user's --block-size; None lets the backend choose."""
    is_mla: bool = False
    is_sparse: bool = False
    is_compressed: bool = False
    shares_latents: bool = False
    has_long_rows: bool = False
    """Its latents' rows are as long as those of other layers (dots3-note)."""
    has_sinks: bool = False
    has_window: bool = False
    is_cross: bool = False
    """It attends to what an encoder made."""
    dcp: int = 1
    v_head_size: int = 0
    """0: as `head_size`."""
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    kv_lora_rank: int = 0
    index_topk: int = 0
    trims_drafts: bool = False
    """Drafts are left out on the card, which the CPU does not know of (`enable_adaptive_verification`)."""
    batch_invariant: bool = False
    """Results may not depend on the batch (VLLM_BATCH_INVARIANT)."""
    flash_version: int = 0
    """Of FlashAttention, as stated; 0: the card's own."""

    def flash_on(self, capability: Capability) -> int:
        """Version that serves the layer: 3 on Hopper, else 2; elsewhere vLLM itself takes none that is 3."""
        own = 3 if capability[0] == 9 else 2
        return own if self.flash_version == 3 else self.flash_version or own


@dataclass(frozen=True, slots=True)
class Backend:
    """One attention backend as the planner sees it. Source: vLLM 0.32, `v1/attention/backends`."""

    name: str
    kv_dtypes: tuple[str, ...]
    block_sizes: tuple[int, ...]
    """Kernel block sizes: any multiple of the only entry, or exactly these if `fixed`."""
    fixed: bool = False
    majors: tuple[int, ...] = ()
    """Compute capability majors; empty: all."""
    head_sizes: tuple[int, ...] = ()
    """Head sizes; empty: all."""
    is_mla: bool = False
    is_sparse: bool = False
    sinks: bool = False
    windows: bool = False
    cross: bool = False
    """It attends to an encoder's output too."""
    dcp: bool = False
    dtypes: tuple[str, ...] = ("float16", "bfloat16")
    packs: tuple[str, ...] = ()
    """KV dtypes that it stores in a packed format of its own; other 8-bit or narrower ones take a byte an element."""
    layouts: tuple[str, ...] = ()
    """Orders of a block's axes that the kernels read; empty: any."""
    graphs: Support = Support.UNIFORM
    """Which steps CUDA graphs may hold it in, as its metadata builder says; some cards differ (`graph_support`)."""

    def takes_block(self, block_size: int) -> bool:
        """Whether blocks of this many tokens can be cut into the kernel's blocks."""
        return any(block_size % size == 0 for size in self.block_sizes)

    def largest_block_within(self, tokens: int) -> int:
        """Largest kernel block of at most `tokens` tokens; the smallest one if none is that small."""
        sizes = self.block_sizes
        if not self.fixed:
            sizes = tuple(max(s, tokens // s * s) for s in sizes)
        return max((s for s in sizes if s <= tokens), default=min(sizes))


_LARGE_PAGES = (16, 32, 64, 128, 256, 512, 1024)

BACKENDS = {
    b.name: b
    for b in (
        Backend(
            "FLASH_ATTN",
            _FP8,
            (16,),
            majors=(8, 9, 10, 11, 12),
            sinks=True,
            windows=True,
            cross=True,
            dcp=True,
        ),
        Backend(
            "FLASHINFER",
            (*_FP8, "fp8_e5m2", "nvfp4", "nvfp4_4over6", "nvfp4_ds_mla"),
            (16, 32, 64),
            fixed=True,
            majors=(8, 9, 10, 11, 12),
            head_sizes=(64, 128, 256, 512),
            sinks=True,
            windows=True,
            dcp=True,
            packs=("nvfp4", "nvfp4_4over6"),
        ),
        Backend(
            "TRITON_ATTN",
            (*_FP8, "fp8_e5m2", *_PER_HEAD),
            (16,),
            sinks=True,
            windows=True,
            cross=True,
            dtypes=("float16", "bfloat16", "float32"),
            packs=_PER_HEAD,
            graphs=Support.ALWAYS,
        ),
        Backend(
            "FLEX_ATTENTION",
            _AUTO,
            (16,),
            windows=True,
            dtypes=("float16", "bfloat16", "float32"),
            layouts=("LBNHC",),
            graphs=Support.ALWAYS,
        ),
        Backend("FLASH_ATTN_DIFFKV", _ANY_BUT_E5M2, (16,), majors=(9,), sinks=True, windows=True, dcp=True),
        Backend("TRITON_ATTN_DIFFKV", _FP8, (16,), sinks=True, windows=True, graphs=Support.ALWAYS),
        Backend("TURBOQUANT", _TURBO, (16, 32, 64, 128), fixed=True, packs=_TURBO, layouts=("LBNHC",)),
        Backend("FLASH_ATTN_MLA", _AUTO, (16,), majors=(9,), is_mla=True, dcp=True),
        Backend("FLASHMLA", _FP8, (64,), fixed=True, majors=(9,), is_mla=True, dcp=True),
        Backend(
            "FLASHINFER_MLA",
            _FP8,
            (32, 64),
            fixed=True,
            majors=(10,),
            is_mla=True,
            dcp=True,
            graphs=Support.ALWAYS,
        ),
        Backend(
            "CUTLASS_MLA",
            _FP8,
            (128,),
            fixed=True,
            majors=(10,),
            is_mla=True,
            dcp=True,
            graphs=Support.SINGLE_TOKEN,
        ),
        Backend("TRITON_MLA", _FP8, (16,), is_mla=True, dcp=True),
        Backend(
            "TOKENSPEED_MLA", ("fp8", "fp8_e4m3"), (32, 64), fixed=True, majors=(10,), is_mla=True, dcp=True
        ),
        Backend(
            "B12X",
            ("auto", "bfloat16", "fp8", "fp8_e4m3"),
            (64, 128),
            fixed=True,
            majors=(12,),
            head_sizes=(64, 128, 192, 256),
            sinks=True,
            windows=True,
            dtypes=("bfloat16",),
            layouts=("LBHNC", "BLHNC"),
        ),
        Backend(
            "HPC_ATTN",
            ("auto", "bfloat16", "fp8_e4m3"),
            (64,),
            fixed=True,
            majors=(9,),
            head_sizes=(128,),
            layouts=("LBNHC",),
            graphs=Support.SINGLE_TOKEN,
        ),
        Backend(
            "TRITON_FLASH_ATTN",
            _FP8,
            (16,),
            majors=(9,),
            head_sizes=(256, 512),
            sinks=True,
            windows=True,
            graphs=Support.SINGLE_TOKEN,
        ),
        Backend(
            "TRITON_FLASHINFER",
            (*_FP8, "fp8_e5m2"),
            (64,),
            fixed=True,
            majors=(10,),
            head_sizes=(256, 512),
            sinks=True,
            windows=True,
            layouts=("LBHNC", "BLHNC"),
            graphs=Support.SINGLE_TOKEN,
        ),
        Backend(
            "FLASHINFER_MLA_SPARSE_SM90",
            ("auto", "bfloat16", "fp8", "fp8_e4m3"),
            (64,),
            majors=(9,),
            head_sizes=(512, 576),
            is_mla=True,
            is_sparse=True,
            dtypes=("bfloat16",),
        ),
        Backend("FLASH_ATTN_MLA_SPARSE", _AUTO, (64,), majors=(9,), is_mla=True, is_sparse=True),
        Backend(
            "FLASHMLA_SPARSE",
            ("auto", "bfloat16", "fp8_ds_mla", "fp8", "nvfp4_ds_mla"),
            (64,),
            majors=(9, 10),
            head_sizes=(576, 512),
            is_mla=True,
            is_sparse=True,
            dcp=True,
            dtypes=("bfloat16",),
        ),
        Backend(
            "FLASHINFER_MLA_SPARSE",
            _FP8,
            (32,),
            majors=(10,),
            head_sizes=(512, 576),
            is_mla=True,
            is_sparse=True,
            dcp=True,
        ),
        Backend(
            "FLASHINFER_MLA_SPARSE_SM120",
            ("auto", "fp8", "fp8_e4m3", "fp8_ds_mla"),
            (64,),
            majors=(12,),
            head_sizes=(512, 576),
            is_mla=True,
            is_sparse=True,
            dtypes=("bfloat16",),
        ),
        Backend(
            "DOTS3_NOTE_PADDED_MLA_SPARSE",
            _AUTO,
            (64,),
            majors=(9, 10),
            is_mla=True,
            is_sparse=True,
            dcp=True,
        ),
        Backend(
            "DOTS3_NOTE_TRITON_MLA", _FP8, (16,), head_sizes=(1088,), is_mla=True, windows=True, dcp=True
        ),
        Backend("MINIMAX_M3_SPARSE", _FP8, (128,), fixed=True, head_sizes=(128,), is_sparse=True),
        Backend(
            "FLASHMLA_SPARSE_DSV4",
            ("auto", "fp8", "fp8_e4m3", "fp8_ds_mla"),
            (256,),
            fixed=True,
            majors=(9, 10),
            head_sizes=(512,),
            is_mla=True,
            is_sparse=True,
            windows=True,
            graphs=Support.ALWAYS,
        ),
        Backend(
            "FLASHMLA_SPARSE_DSV41",
            ("auto", "fp8", "fp8_ds_mla"),
            (64,),
            fixed=True,
            majors=(9,),
            head_sizes=(512,),
            is_mla=True,
            is_sparse=True,
            windows=True,
            graphs=Support.ALWAYS,
        ),
        Backend(
            "FLASHMLA_MEGA_ATTN_DSV41",
            ("auto", "fp8", "fp8_ds_mla", "nvfp4_ds_mla"),
            (128,),
            fixed=True,
            majors=(10,),
            head_sizes=(512,),
            is_mla=True,
            is_sparse=True,
            windows=True,
            graphs=Support.ALWAYS,
        ),
    )
}

OTHER_LAYOUTS = ("FLASHINFER_MLA_SPARSE_DSV4", "FLASHINFER_MLA_SPARSE_DSV41", "ULTRAQUANT", "CUSTOM")
"""Names that vLLM's registry takes on CUDA and whose KV is not laid out here."""
ELSEWHERE = (
    *("XPU_MLA_SPARSE", "CPU_ATTN", "CPU_MLA", "AMX_MLA", "ROCM_FLASHMLA_SPARSE_DSV4"),
    *("TORCH_SDPA", "NO_ATTENTION"),
)
"""Names that it takes for other devices, for towers, or for layers without KV."""

BATCH_INVARIANT = (
    *("FLASH_ATTN", "TRITON_ATTN", "FLEX_ATTENTION", "FLASH_ATTN_MLA", "TRITON_MLA"),
    *("FLASH_ATTN_DIFFKV", "TRITON_ATTN_DIFFKV", "DOTS3_NOTE_TRITON_MLA"),
)
"""Backends whose `supports_batch_invariance` says so, of their own or of the class they are made from."""

INDEXER = Backend("DEEPSEEK_V32_INDEXER", ("auto",), (64,), fixed=True, head_sizes=(32, 64, 128))
"""Keys of the sparse-attention indexer; it only constrains the block size."""


def priorities(capability: Capability, needs: LayerNeeds) -> list[str]:
    """Backends in the order they are tried. Source: vLLM 0.32, `platforms/cuda.py`."""
    major = capability[0]
    if needs.v_head_size not in (0, needs.head_size) and not needs.is_mla:
        return [
            "FLASH_ATTN_DIFFKV" if major == 9 else "TRITON_ATTN_DIFFKV"
        ]  # the model's own choice, no fallback
    if needs.has_long_rows or (needs.is_mla and needs.has_window):
        return ["DOTS3_NOTE_PADDED_MLA_SPARSE" if needs.has_long_rows else "DOTS3_NOTE_TRITON_MLA"]
    if needs.shares_latents:
        return ["FLASHMLA_MEGA_ATTN_DSV41" if major == 10 else "FLASHMLA_SPARSE_DSV41"]
    if needs.is_compressed:
        return ["FLASHMLA_SPARSE_DSV4"]
    if needs.is_sparse and not needs.is_mla:
        return ["MINIMAX_M3_SPARSE"]
    if not needs.is_mla:
        first = ["FLASHINFER", "FLASH_ATTN"] if major == 10 else ["FLASH_ATTN", "FLASHINFER"]
        return [*first, "TRITON_ATTN", "FLEX_ATTENTION", "TURBOQUANT"]
    if major == 10:
        sparse = ["FLASHMLA_SPARSE", "FLASHINFER_MLA_SPARSE"]
        if is_quantized(needs.kv_dtype) or needs.num_heads <= 16:
            sparse.reverse()
        return ["FLASHINFER_MLA", "CUTLASS_MLA", "FLASH_ATTN_MLA", "FLASHMLA", "TRITON_MLA", *sparse]
    if major == 12:
        return ["TRITON_MLA", "FLASHINFER_MLA_SPARSE_SM120"]
    sparse = ["FLASH_ATTN_MLA_SPARSE", "FLASHMLA_SPARSE"]
    return ["FLASH_ATTN_MLA", "FLASHMLA", "FLASHINFER_MLA", "TRITON_MLA", *sparse]


def is_quantized(kv_dtype: str) -> bool:
    """Whether a KV dtype stores less than 16 bits an element."""
    return kv_dtype not in _AUTO


OWN = ("DIFFKV", "MINIMAX_M3_SPARSE", "DOTS3_NOTE_PADDED_MLA_SPARSE", "DOTS3_NOTE_TRITON_MLA")
"""Ends of backends that a model's layers ask for themselves, whatever `--attention-backend` says."""


def select_backend(capability: Capability, needs: LayerNeeds, forced: str | None = None) -> Backend:
    """Return the backend the engine would use for this layer on this GPU.

    Args:
        capability: compute capability of the GPU.
        needs: what the layer asks.
        forced: the user's --attention-backend.

    Raises:
        KvplanError: no backend takes the layer; says why each one does not.
    """
    if forced in OTHER_LAYOUTS:
        raise KvplanError(f"attention backend {forced}: how it lays out KV is not planned")
    if forced in ELSEWHERE:
        raise KvplanError(f"attention backend {forced} serves no layer with KV on CUDA")
    if forced is not None and forced not in BACKENDS:
        raise KvplanError(f"unknown attention backend {forced!r}{did_you_mean(forced, BACKENDS)}")
    reasons = []
    names = priorities(capability, needs)
    for name in [forced] if forced and not names[0].endswith(OWN) else names:
        backend = BACKENDS[name]
        reason = refusal(backend, capability, needs)
        if not reason:
            _check_kernel(backend, capability, needs)
            return _on_blackwell(backend, capability, needs)
        reasons.append(f"{name}: {reason}")
    asked = (
        f"KV dtype {needs.kv_dtype}, head size {needs.head_size}, compute capability {_dotted(capability)}"
    )
    raise KvplanError(f"no attention backend takes {asked} ({'; '.join(reasons)})")


def _check_kernel(backend: Backend, capability: Capability, needs: LayerNeeds) -> None:
    """What a kernel refuses only after it was picked: the start fails instead of trying the next backend."""
    least = (8, 9) if needs.kv_dtype.startswith("fp8") else (8, 0) if needs.kv_dtype == "bfloat16" else (0, 0)
    if backend.name.startswith("TRITON") and capability < least:
        raise KvplanError(
            f"kv_cache_dtype {needs.kv_dtype} needs compute capability {_dotted(least)} or more under {backend.name}, "
            f"this card has {_dotted(capability)}"
        )
    if backend.name == "FLASHMLA_SPARSE" and needs.dcp > 1 and not needs.kv_dtype.startswith("fp8"):
        raise KvplanError("decode_context_parallel_size with sparse MLA needs kv_cache_dtype fp8_ds_mla")


def refusal(backend: Backend, capability: Capability, needs: LayerNeeds) -> str:
    """Return the first reason why a backend does not take the layer; empty if it does."""
    b, n = backend, needs
    checks = (
        (b.is_mla != n.is_mla, "MLA not supported" if n.is_mla else "for MLA only"),
        (
            b.is_sparse != n.is_sparse,
            "sparse attention not supported" if n.is_sparse else "for sparse attention only",
        ),
        (b.majors and capability[0] not in b.majors, "compute capability not supported"),
        (n.kv_dtype not in b.kv_dtypes, "KV dtype not supported"),
        (n.dtype not in b.dtypes, f"dtype {n.dtype} not supported"),
        (b.head_sizes and n.head_size not in b.head_sizes, "head size not supported"),
        (n.block_size and not b.takes_block(n.block_size), f"block size {n.block_size} not supported"),
        (n.has_sinks and not b.sinks, "attention sinks not supported"),
        (n.has_window and not b.windows, "sliding window not supported"),
        (n.is_cross and not b.cross, "attention to an encoder not supported"),
        (n.batch_invariant and b.name not in BATCH_INVARIANT, "batch invariance not supported"),
        (n.dcp > 1 and not b.dcp, "decode context parallelism not supported"),
    )
    for failed, reason in checks:
        if failed:
            return reason
    quirk = _QUIRKS.get(b.name)
    return quirk(capability, n) if quirk else ""


def _flash_attn(capability: Capability, n: LayerNeeds) -> str:
    if n.head_size % 8 or n.head_size > 256:
        return "head size not supported"
    if is_quantized(n.kv_dtype) and n.flash_on(capability) != 3:
        return "an fp8 KV cache needs FlashAttention 3"
    if n.has_sinks and n.flash_on(capability) != 3:
        return "attention sinks need FlashAttention 3"
    return ""


def _flashinfer(capability: Capability, n: LayerNeeds) -> str:
    major = capability[0]
    if capability > (12, 1):
        return "compute capability not supported"
    if n.has_sinks and major != 10 and capability not in ((9, 0), (12, 0), (12, 1)):
        return "attention sinks not supported"
    if n.kv_dtype.startswith("nvfp4"):
        if major not in (8, 9, 12, 10) or (n.kv_dtype != "nvfp4" and major != 10):
            return "KV dtype not supported"
        if major != 10 and (n.head_size == 64 or n.has_sinks):
            return "nvfp4 KV not supported with head size 64 or sinks"
    if n.trims_drafts and (major != 10 or n.dcp > 1 or n.num_heads % n.num_kv_heads):
        return "adaptive verification not supported"
    return ""


def _triton(capability: Capability, n: LayerNeeds) -> str:
    return "head size not supported" if n.head_size < 32 else ""


def _flashinfer_mla(capability: Capability, n: LayerNeeds) -> str:
    return "" if n.qk_nope_head_dim in (64, 128, 192) else "qk_nope_head_dim not supported"


def _flashmla_sparse(capability: Capability, n: LayerNeeds) -> str:
    if n.kv_dtype == "nvfp4_ds_mla" and capability[0] != 10:
        return "nvfp4_ds_mla needs compute capability 10"
    if n.head_size == 512:
        plain = n.kv_dtype in (*_AUTO, "fp8_ds_mla") and capability[0] == 9
        return "" if plain and n.qk_rope_head_dim == 0 else "head size 512 not supported"
    return ""


def _flashinfer_mla_sparse(capability: Capability, n: LayerNeeds) -> str:
    if n.qk_rope_head_dim == 0:
        fits = (n.qk_nope_head_dim, n.kv_lora_rank) == (256, 512)
        return "" if fits else "MLA without rope of this shape not supported"
    return "" if n.qk_nope_head_dim in (128, 192) else "qk_nope_head_dim not supported"


def _flashinfer_mla_sparse_sm120(capability: Capability, n: LayerNeeds) -> str:
    return "" if n.index_topk == 2048 else "index_topk must be 2048"


def _tokenspeed(capability: Capability, n: LayerNeeds) -> str:
    fits = (n.qk_nope_head_dim, n.qk_rope_head_dim, n.v_head_size) == (128, 64, 128)
    return "" if fits else "for DeepSeek-R1's head sizes only (128 and 64 of rope, values of 128)"


def _hpc(capability: Capability, n: LayerNeeds) -> str:
    return "" if n.num_heads // n.num_kv_heads in (4, 8) else "4 or 8 query heads for each KV head only"


def _triton_flash_attn(capability: Capability, n: LayerNeeds) -> str:
    if n.flash_on(capability) != 3:
        return "causal layers need FlashAttention 3"
    return _flash_attn(capability, n)


def _b12x(capability: Capability, n: LayerNeeds) -> str:
    if capability not in ((12, 0), (12, 1)):
        return "compute capability not supported"
    return "" if n.block_size else "needs --block-size 64 or 128"  # it looks before vLLM chooses one


def _sparse_sm90(capability: Capability, n: LayerNeeds) -> str:
    fits = n.kv_lora_rank == 512 and n.qk_rope_head_dim in (0, 64)
    return "" if fits else "latents of 512 and 0 or 64 dimensions of rope only"


_QUIRKS = {
    "TOKENSPEED_MLA": _tokenspeed,
    "HPC_ATTN": _hpc,
    "TRITON_FLASH_ATTN": _triton_flash_attn,
    "TRITON_FLASHINFER": _flashinfer,
    "B12X": _b12x,
    "FLASHINFER_MLA_SPARSE_SM90": _sparse_sm90,
    "FLASH_ATTN": _flash_attn,
    "FLASHINFER": _flashinfer,
    "TRITON_ATTN": _triton,
    "FLASHINFER_MLA": _flashinfer_mla,
    "FLASHMLA_SPARSE": _flashmla_sparse,
    "FLASHINFER_MLA_SPARSE": _flashinfer_mla_sparse,
    "FLASHINFER_MLA_SPARSE_SM120": _flashinfer_mla_sparse_sm120,
}


def _on_blackwell(backend: Backend, capability: Capability, n: LayerNeeds) -> Backend:
    """On data-centre Blackwell, FlashInfer reads head-major blocks, and under GQA pages of 128 tokens and more."""
    if backend.name != "FLASHINFER" or capability[0] != 10:
        return backend
    sizes = _LARGE_PAGES if n.num_heads // n.num_kv_heads > 1 else backend.block_sizes
    return replace(backend, block_sizes=sizes, layouts=("LBHNC", "BLHNC"))


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"
