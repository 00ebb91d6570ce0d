"""Bytes of one token in one layer, for every KV format. Knows attention shapes and backends, not models."""

from __future__ import annotations

import math

from kvplan.formulas.capacity import kv_bytes_per_token, kv_heads_per_rank, latent_bytes_per_token
from kvplan.ground.errors import KvplanError
from kvplan.memory.kv.backends import Backend, is_quantized
from kvplan.models.spec import AttentionSpec
from kvplan.models.weights import ITEM_BYTES

PACKED_LATENT = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
"""Bytes a token and layer of DeepSeek's packed latent formats; not a dtype times the latent's width."""
_PACKED_HEADS = ("nvfp4", "turboquant_", "int4_per", "int8_per", "fp8_per")
_TURBOQUANT_BITS = {"k8v4": (8, 4), "4bit_nc": (4, 4), "k3v4_nc": (3, 4), "3bit_nc": (3, 3)}
"""Bits of a key and of a value element."""


def stored_format(backend: Backend, kv_dtype: str) -> str:
    """Return the format a backend really stores: DeepSeek's packed latent, its own packing, or a byte an element."""
    if backend.name == "FLASHMLA_SPARSE" and is_quantized(kv_dtype) and kv_dtype != "nvfp4_ds_mla":
        return "fp8_ds_mla"
    if backend.name == "FLASHINFER_MLA_SPARSE_SM120" and kv_dtype in ("auto", "fp8", "fp8_e4m3"):
        return "fp8_ds_mla"
    if kv_dtype.startswith(_PACKED_HEADS) and not backend.is_mla and kv_dtype not in backend.packs:
        return "fp8"
    return kv_dtype


def token_bytes(spec: AttentionSpec, kv_format: str, dtype: str, tp: int) -> int:
    """Return the bytes one token takes in one layer of one rank.

    Plain formats: KV heads per rank x (K width + V width) x element size. Per-token-head formats add a
    4-byte scale per head and side; nvfp4 is width / 2 + width / 16 a side; TurboQuant packs bits and adds
    a 2-byte norm (keys below 8 bits) and 4 bytes of scale and zero (values). A latent (MLA) is whole on every rank.

    Args:
        spec: the layer's attention, whole model.
        kv_format: what the backend stores; `auto` for the model's dtype.
        dtype: the model's dtype.
        tp: tensor-parallel ranks.

    Raises:
        KvplanError: nvfp4 with K and V of different widths.
    """
    if spec.is_latent:
        packed = PACKED_LATENT.get(kv_format)
        latent = (spec.latent_row or spec.kv_lora_rank + spec.qk_rope_head_dim) - spec.qk_rope_head_dim
        plain = latent_bytes_per_token(1, latent, spec.qk_rope_head_dim, element_bytes(kv_format, dtype))
        return packed or int(plain)
    k, v = spec.head_dim, spec.v_head_dim or spec.head_dim
    if packed := _packed_head_bytes(k, v, kv_format):
        return int(kv_heads_per_rank(spec.num_kv_heads, tp)) * packed
    itemsize = element_bytes(kv_format, dtype)
    return int(kv_bytes_per_token(1, spec.num_kv_heads, k, itemsize, tp=tp, v_head_dim=v))


def _packed_head_bytes(k: int, v: int, kv_format: str) -> int:
    """K and V of one head in a format with scales or packed bits; 0 for plain elements."""
    if kv_format == "int4_per_token_head":
        return k // 2 + v // 2 + 8
    if kv_format.endswith("_per_token_head"):
        return k + v + 8
    if kv_format.startswith("nvfp4"):
        if k != v:
            raise KvplanError("an nvfp4 KV cache needs K and V heads of equal width")
        return 2 * (k // 2 + k // 16)
    if kv_format.startswith("turboquant_"):
        key_bits, value_bits = _TURBOQUANT_BITS[kv_format.removeprefix("turboquant_")]
        keys = k if key_bits == 8 else math.ceil(k * key_bits / 8) + 2
        slot = keys + math.ceil(k * value_bits / 8) + 4
        return slot + slot % 2
    return 0


def element_bytes(kv_format: str, dtype: str) -> int:
    """Return the bytes of one stored element: the model dtype's for `auto`, 1 for fp8 and int8."""
    return ITEM_BYTES[dtype] if kv_format == "auto" else ITEM_BYTES.get(kv_format, 1)


def indexer_token_bytes(index_head_dim: int, itemsize: int = 1) -> int:
    """Return the bytes of one token in a sparse-attention indexer: an fp8 key, a 4-byte scale per 128 elements.

    `itemsize` 2: the key alone, in 16 bits (MiniMax M3).

    >>> indexer_token_bytes(128)
    132
    """
    if itemsize > 1:
        return index_head_dim * itemsize
    return index_head_dim + index_head_dim // 128 * 4


def group_format(spec: AttentionSpec, kv_format: str, dtype: str) -> str:
    """Name a format so that equal names may share a group: all fp8 are one, `auto` is the model's dtype.

    Latents go by the flag's own word.
    """
    if spec.is_latent:
        return kv_format
    if kv_format in ("fp8", "fp8_e4m3", "fp8_e5m2"):
        return "fp8"
    return dtype if kv_format == "auto" else kv_format
