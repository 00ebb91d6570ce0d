"""What a tower's attention needs by its kernels (--mm-encoder-attn-backend, -dtype), and what of them is refused.

None of vLLM's kernels writes scores out: PyTorch's, too, are its flash ones (compute capability 8.0 on) or those that
spare memory. At the widest moment of a layer there live, in widths of all heads together:

    rotating Q and K         Q, K, V, a pair of Q and K to rotate and one rotated                          7
    FlashAttention, Triton   Q, K, V, Q and K rotated, the output                                          6
    PyTorch                  Q, K, V, Q and K rotated, the items' outputs, these joined                    7
       on AMD's cards        a copy of V too                                                               8
    in FP8                   Q, K, V, Q and K rotated, all three in 8 bits and the output with heads       7.5
                             padded to multiples of 16; where they are, the output once more     6 + 2.5 x padded

FlashInfer's kernels keep a workspace from loading on. Source: vLLM 0.32 `layers/attention/mm_encoder_attention.py`,
`v1/attention/ops/vit_attn_wrappers.py`, `platforms/cuda.py`, `platforms/rocm.py`.
"""

from __future__ import annotations

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.units import MiB, cdiv
from kvplan.models.spec import ModelSpec
from kvplan.models.towers.attention import (
    FLASH_ATTN_ALONE,
    HAND_ON_LENGTHS,
    NO_FLASHINFER,
    heeds_flags,
)

WIDTH = 7.0
"""Widths of the heads that live at once with the kernels that vLLM chooses itself."""
WORKSPACE = 128 * MiB
"""Of FlashInfer's kernels (`FLASHINFER_CUDNN_WORKSPACE_SIZE_BYTES`)."""
BACKENDS = {
    "nvidia": ("FLASH_ATTN", "TRITON_ATTN", "TORCH_SDPA", "FLASHINFER"),
    "amd": ("FLASH_ATTN", "ROCM_AITER_FA", "TRITON_ATTN", "TORCH_SDPA"),
}
"""Maker of the card -> `get_supported_vit_attn_backends`."""


def runs_vllms(model: ModelSpec, args: EngineArgs) -> bool:
    """Whether a tower is loaded whose attention is vLLM's layer."""
    return model.vision is not None and not args.language_model_only and heeds_flags(model.architecture)


def asked_backend(model: ModelSpec, args: EngineArgs) -> str | None:
    """The kernels asked for that the tower runs; None: vLLM's choice, or a tower with its own."""
    if not runs_vllms(model, args):
        return None
    asked = args.mm_encoder_attn_backend
    return "FLASH_ATTN" if asked == "FLASHINFER" and model.architecture.startswith(NO_FLASHINFER) else asked


def heads_width(model: ModelSpec, args: EngineArgs, gpu: GpuSpec) -> float:
    """Widths of the heads that live at the widest moment of attention."""
    if not runs_vllms(model, args):
        return WIDTH
    if args.mm_encoder_attn_dtype == "fp8":
        padded = _padded(model)
        return 6 + 2.5 * padded if padded > 1 else 7.5
    return 8.0 if asked_backend(model, args) == "TORCH_SDPA" and gpu.vendor == "amd" else WIDTH


def _padded(model: ModelSpec) -> float:
    """Heads padded to a multiple of 16 over heads as they are; 1 where their size is not known."""
    facts = dict(model.vision.facts) if model.vision else {}
    hidden, heads = facts.get("hidden", 0), facts.get("heads", 0)
    if not heads or hidden % heads:
        return 1.0
    size = hidden // heads
    return 16 * cdiv(size, 16) / size


def workspace_bytes(model: ModelSpec, args: EngineArgs) -> int:
    """What the kernels asked for keep on each GPU."""
    return WORKSPACE if asked_backend(model, args) == "FLASHINFER" else 0


def check_tower_attention(model: ModelSpec, args: EngineArgs, gpu: GpuSpec) -> None:
    """Refuse kernels that vLLM refuses for this card or that this tower's class cannot run."""
    if not runs_vllms(model, args):
        return
    asked = asked_backend(model, args)
    if asked is not None:
        _check_backend(model, asked, gpu)
    if args.mm_encoder_attn_dtype == "fp8":
        _check_fp8(asked, gpu)


def _check_backend(model: ModelSpec, asked: str, gpu: GpuSpec) -> None:
    said, known = f"--mm-encoder-attn-backend {asked[:40]}", BACKENDS[gpu.vendor]
    if asked not in known:
        raise KvplanError(
            f"{said}: towers on {gpu.vendor}'s cards run {', '.join(known[:-1])} or {known[-1]}"
        )
    if model.architecture.startswith(FLASH_ATTN_ALONE) and asked != "FLASH_ATTN":
        raise KvplanError(f"{said}: the tower of {model.architecture} runs FLASH_ATTN alone")
    if asked == "FLASHINFER" and not model.architecture.startswith(HAND_ON_LENGTHS):
        raise KvplanError(
            f"{said}: the tower of {model.architecture} does not hand on the lengths and offsets of items that its "
            "kernels read; FLASH_ATTN would do"
        )
    if asked == "FLASH_ATTN" and gpu.vendor == "nvidia" and gpu.compute_capability < 8:
        raise KvplanError(
            f"{said}: for compute capability 8.0 and more, {gpu.name} has {gpu.compute_capability:g}; TORCH_SDPA "
            "would do"
        )


def _check_fp8(asked: str | None, gpu: GpuSpec) -> None:
    """Quantised queries, keys and values: FlashInfer's cuDNN kernels on Blackwell, AITER's on MI300 and MI350."""
    said = "--mm-encoder-attn-dtype fp8"
    if gpu.vendor == "amd":
        if asked not in (None, "ROCM_AITER_FA"):
            raise KvplanError(f"{said}: needs --mm-encoder-attn-backend ROCM_AITER_FA, not {asked}")
        if gpu.architecture not in ("cdna3", "cdna4"):
            raise KvplanError(f"{said}: for MI300's and MI350's cards, {gpu.name} is none")
        return
    if asked != "FLASHINFER":
        raise KvplanError(f"{said}: needs --mm-encoder-attn-backend FLASHINFER")
    if gpu.compute_capability < 10:
        raise KvplanError(
            f"{said}: for compute capability 10.0 and more, {gpu.name} has {gpu.compute_capability:g}"
        )
