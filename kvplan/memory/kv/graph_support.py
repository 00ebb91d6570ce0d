"""Which steps CUDA graphs may hold the attention of a model in: the least of what its layers' kernels allow.

Source: `get_cudagraph_support` of vLLM 0.32's metadata builders (`v1/attention/backends`).
"""

from __future__ import annotations

from collections.abc import Sequence

from kvplan.engines.kernel_flags import attention_config
from kvplan.formulas.graphs import Support
from kvplan.ground.errors import KvplanError
from kvplan.memory.kv.backends import Backend
from kvplan.memory.kv.mixers import LayoutSetup, Mixer
from kvplan.models.spec import AttentionKind

XQA_MAJORS = 9, 12
"""Cards whose FlashInfer decodes drafts by its XQA kernel, others by TensorRT-LLM's or not at all."""


def graph_support(setup: LayoutSetup, mixers: Sequence[Mixer]) -> Support:
    """The least over all layers; ALWAYS without any."""
    return min((_of(setup, m) for m in mixers), default=Support.ALWAYS)


def _of(setup: LayoutSetup, m: Mixer) -> Support:
    if m.spec.kind is AttentionKind.CHUNKED:  # by its class, also where its KV counts as full attention's
        return Support.NEVER
    if m.spec.kind is AttentionKind.STATE:
        linear = m.spec.state is not None and m.spec.state.family == "linear_attention"
        own = setup.model.architecture.startswith("Bailing")
        return Support.SINGLE_TOKEN if linear and not own else Support.UNIFORM
    if m.backend is None:
        return Support.ALWAYS
    if m.backend.name == "FLASHINFER":
        return _flashinfer(setup, m, m.backend)
    flash = m.backend.name in ("FLASH_ATTN", "FLASH_ATTN_DIFFKV")
    third = attention_config(setup.args.attention_config).flash_attn_version in (None, 3)
    return Support.ALWAYS if flash and third and setup.capability[0] == 9 else m.backend.graphs


TRIM_UNIFORM = ("FLASHINFER", "FLASHINFER_MLA_SPARSE")
"""Backends whose graphs of decodes replay sequences of unlike numbers of tokens, though they are captured uniform."""


def check_trimming(setup: LayoutSetup, mixers: Sequence[Mixer]) -> None:
    """Refuse attention whose kernels or graphs want to know how many drafts each sequence verifies.

    Source: vLLM 0.32 `v1/worker/gpu/spec_decode/adaptive_verification.py: maybe_create_adaptive_verification_manager`.
    """
    for m in mixers:
        state = m.spec.kind is AttentionKind.STATE and m.spec.state is not None
        if state and not setup.model.architecture.startswith("KimiK3"):
            raise KvplanError(
                "enable_adaptive_verification: vLLM 0.32 plans states by the CPU's lengths, which it trims on the card;"
                " leave it out"
            )
        name = m.backend.name if m.backend else ""
        if not state and _of(setup, m) is not Support.ALWAYS and name not in TRIM_UNIFORM:
            raise KvplanError(
                f"enable_adaptive_verification: graphs of attention backend {name or m.spec.kind.value} replay no"
                " decodes of unlike lengths; leave it out"
            )


def _flashinfer(setup: LayoutSetup, m: Mixer, backend: Backend) -> Support:
    """Decodes of several tokens where kernels of TensorRT-LLM or XQA serve the heads, and no ranks share a sequence."""
    spec, capability = m.spec, setup.capability
    drafts = capability == (9, 0) or capability[0] in (10, 12)
    if attention_config(setup.args.attention_config).use_trtllm_attention is False:
        return Support.SINGLE_TOKEN
    if setup.args.decode_context_parallel_size > 1 or not drafts or spec.num_heads % spec.num_kv_heads:
        return Support.SINGLE_TOKEN
    if capability[0] in XQA_MAJORS:
        packed = m.kv_format.startswith("nvfp4") and capability[0] != 12
        wide = spec.head_dim > 256 or spec.head_dim % 16 > 0
        return Support.SINGLE_TOKEN if packed or wide else backend.graphs
    return backend.graphs
