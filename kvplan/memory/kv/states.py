"""Bytes of a recurrent or convolution state on one rank. Re-derived from vLLM 0.32, `layers/mamba`."""

from __future__ import annotations

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.models.modules import even
from kvplan.models.spec import StateSpec
from kvplan.models.weights import ITEM_BYTES


def state_bytes(state: StateSpec, args: EngineArgs, model_dtype: str) -> int:
    """Return the bytes of one layer's state on one rank.

    A convolution state of (kernel - 1 + drafts) columns and a recurrent state of heads x head x state size;
    drafts lengthen the convolution so that rejected tokens can be taken back.

    Raises:
        KvplanError: an unknown family, or heads that do not divide over the ranks.
    """
    if state.family not in _ELEMENTS:
        raise KvplanError(f"state family {state.family!r} is not supported; known: {', '.join(_ELEMENTS)}")
    conv, recurrent = _ELEMENTS[state.family](state, args.tensor_parallel_size, args.num_speculative_tokens)
    conv_dtype, ssm_dtype = state_dtypes(state, args, model_dtype)
    for flag, dtype in (("mamba-cache-dtype", conv_dtype), ("mamba-ssm-cache-dtype", ssm_dtype)):
        if dtype not in ITEM_BYTES:
            raise KvplanError(f"--{flag} {dtype[:40]}: must be auto, float32, float16 or bfloat16")
    ring = _ring_bytes(state, args, ITEM_BYTES[model_dtype]) if args.use_replayssm else 0
    return conv * ITEM_BYTES[conv_dtype] + recurrent * ITEM_BYTES[ssm_dtype] + ring


def _ring_bytes(state: StateSpec, args: EngineArgs, itemsize: int) -> int:
    """Inputs of the last tokens, which the state is brought up to date from: x, dt (float32) and B of each.

    FlashInfer keeps those under verification beside them. Source: vLLM 0.32 `mamba_utils.py: append_replayssm_ring`.
    """
    tp, rows = args.tensor_parallel_size, args.replayssm_buffer_len
    if args.mamba_backend == "flashinfer":
        rows += 1 + args.num_speculative_tokens
    heads, groups = (even(state[name], tp, "state heads and groups") for name in ("num_heads", "n_groups"))
    return rows * (heads * (state["head_dim"] * itemsize + 4) + groups * state["state_size"] * itemsize)


def state_dtypes(state: StateSpec, args: EngineArgs, model_dtype: str) -> tuple[str, str]:
    """Return the dtypes of the convolution and of the recurrent state.

    Raises:
        KvplanError: a recurrent dtype that the family does not take.
    """
    conv = model_dtype if args.mamba_cache_dtype == "auto" else args.mamba_cache_dtype
    if state.family == "kda" and args.mamba_ssm_cache_dtype not in ("auto", "float32"):
        raise KvplanError(f"mamba_ssm_cache_dtype {args.mamba_ssm_cache_dtype}: KDA states are float32 here")
    if args.mamba_ssm_cache_dtype != "auto":
        return conv, args.mamba_ssm_cache_dtype
    if state.family == "kda":
        return conv, "float32"
    return conv, conv if state.ssm_dtype == "auto" else state.ssm_dtype


def _mamba2(state: StateSpec, tp: int, drafts: int) -> tuple[int, int]:
    groups = state["n_groups"]
    if groups % tp and groups != 1:
        raise KvplanError(f"tensor_parallel_size {tp} does not divide the model's {groups} state groups")
    groups = max(groups, tp)  # a single group is copied so that every rank's heads find it
    width = state["intermediate_size"] + 2 * groups * state["state_size"]
    heads = even(state["num_heads"], tp, "state heads")
    conv = even(width, tp, "convolution channels") * (state["conv_kernel"] - 1 + drafts)
    return conv, heads * state["head_dim"] * state["state_size"]


def _gated_delta_net(state: StateSpec, tp: int, drafts: int) -> tuple[int, int]:
    width = 2 * state["num_k_heads"] * state["head_k_dim"] + state["num_v_heads"] * state["head_v_dim"]
    heads = even(state["num_v_heads"], tp, "state heads")
    conv = even(width, tp, "convolution channels") * (state["conv_kernel_size"] - 1 + drafts)
    return conv, heads * state["head_v_dim"] * state["head_k_dim"]


def _kda(state: StateSpec, tp: int, drafts: int) -> tuple[int, int]:
    heads = even(state["num_heads"], tp, "state heads")
    conv = 3 * heads * state["head_dim"] * (state["conv_kernel_size"] - 1 + drafts)
    return conv, heads * state["head_dim"] ** 2


def _short_conv(state: StateSpec, tp: int, drafts: int) -> tuple[int, int]:
    return even(state["intermediate_size"], tp, "channels") * (state["conv_kernel"] - 1 + drafts), 0


def _ngram_conv(state: StateSpec, tp: int, drafts: int) -> tuple[int, int]:
    return state["intermediate_size"] * ((state["conv_kernel"] - 1) * state["dilation"] + drafts), 0


def _mamba1(state: StateSpec, tp: int, drafts: int) -> tuple[int, int]:
    inner = even(state["intermediate_size"], tp, "state channels")
    return inner * (state["conv_kernel"] - 1), inner * state["state_size"]


def _linear_attention(state: StateSpec, tp: int, drafts: int) -> tuple[int, int]:
    return 0, even(state["num_heads"], tp, "state heads") * state["head_dim"] ** 2


_ELEMENTS = {
    "mamba1": _mamba1,
    "mamba2": _mamba2,
    "gdn_attention": _gated_delta_net,
    "kda": _kda,
    "linear_attention": _linear_attention,
    "short_conv": _short_conv,
    "ngram_conv": _ngram_conv,
}
"""Family -> elements of the convolution state and of the recurrent state on one rank."""
