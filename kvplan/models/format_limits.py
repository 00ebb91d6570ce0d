"""What vLLM 0.32 refuses of a checkpoint's `quantization_config`: widths, groups and orders that it has no kernel for,
and keys that it cannot do without. GGUF and bitsandbytes, which plugins of its own bring, are not refused.

Source: its classes, `model_executor/layers/quantization` (`auto_awq.py`, `auto_gptq.py` with `utils/gptq_utils.py` and
`utils/marlin_utils.py`, `inc/inc.py`, `fp8.py`, `modelopt.py`, `compressed_tensors/schemes`, `torchao.py`). Older
versions took more of GPTQ and AWQ, and other engines have limits of their own: neither is asked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvplan.models.config import Keys
from kvplan.models.fp8_blocks import quantised
from kvplan.models.spec import ModelSpec

AWQ = ("awq", "awq_marlin", "auto_awq")
MARLIN_GROUPS = (-1, 32, 64, 128)
INC_TYPES = ("int", "fp", "fp8")
INC_PACKINGS = tuple(f"auto_round:{kind}" for kind in ("auto_gptq", "auto_awq", "fp8", "llm_compressor"))
MODELOPT = (
    *("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "W4A16_NVFP4", "MXFP8"),
    "MIXED_PRECISION",
)


def refused_format(model: ModelSpec) -> str | None:
    """Why vLLM 0.32 does not load a checkpoint in this format, in words; None where it does, or there is none.

    Raises:
        KvplanError: a key that is no number, flag or text where one must stand.
    """
    if model.quantization is None:
        return None
    k = Keys(model.name, model.quantization)
    method = k.text("quant_method").lower()
    faults = LIMITS[method](k) if method in LIMITS else iter(())
    if method in ("auto-round", "inc") and k.text("data_type") in ("fp", "fp8") and model.is_moe:
        return "quantization_config: AutoRound's FP8 of experts"
    return next((f"quantization_config: {fault}" for fault in faults), None)


def ragged_groups(model: ModelSpec, tp: int, dp: int = 1, expert_parallel: bool = False) -> str | None:
    """The first matrix whose columns on a rank are no whole number of its groups of scales, in words.

    AWQ's and compressed-tensors' integers ask for it (of experts the latter's alone); GPTQ's are loaded all the same.
    """
    method = str((model.quantization or {}).get("quant_method", "")).lower()
    if method not in (*AWQ, "compressed-tensors"):
        return None
    for module, scheme in quantised(model, tp, dp, expert_parallel):
        asks = method == "compressed-tensors" or module.role != "expert"
        if scheme.name.startswith("int") and asks and module.cols % max(scheme.block_cols, 1):
            return f"{module.name} has {module.cols} columns on a rank, no multiple of groups of {scheme.block_cols}"
    return None


def _missing(k: Keys, *needed: tuple[str, ...]) -> Iterator[str]:
    """Keys that vLLM looks up under one of several names and does not find."""
    yield from (f"{' or '.join(names)} is missing" for names in needed if not any(n in k.raw for n in names))


def _awq(k: Keys) -> Iterator[str]:
    yield from _missing(k, ("w_bit", "bits"), ("q_group_size", "group_size"), ("zero_point",))
    if (bits := k.count("w_bit", "bits", default=4)) != 4:
        yield f"AWQ of {bits} bits; only 4 are supported"


def _gptq(k: Keys) -> Iterator[str]:
    yield from _missing(k, *((name,) for name in ("bits", "group_size", "desc_act", "sym")))
    yield from _gptq_layer(k)
    for name, told in k.section("dynamic").raw.items():
        if not name.startswith("-:") and isinstance(told, dict):
            yield from _gptq_layer(Keys(k.name, {**k.raw, **told}))


def _gptq_layer(k: Keys) -> Iterator[str]:
    """One set of sizes: the checkpoint's, or that of a rule for some of its modules."""
    bits, group = k.count("bits", default=4), k.count("group_size", default=128, low=-1)
    if k.flag("desc_act") and group != -1:
        yield "GPTQ with desc_act, weights in the order of activations, is supported no longer"
    if bits not in (4, 8) or not k.flag("sym", True):
        symmetric = "" if k.flag("sym", True) else ", not symmetric"
        yield f"GPTQ of {bits} bits{symmetric}; only symmetric 4 and 8 are supported"
    if group not in MARLIN_GROUPS:
        yield f"GPTQ in groups of {group}; Marlin takes {_groups()}"


def _inc(k: Keys) -> Iterator[str]:
    yield from _missing(k, ("bits",), ("group_size",))
    bits, kind = k.count("bits", default=4), k.text("data_type", default="int")
    if (packing := k.text("packing_format")) and packing not in INC_PACKINGS:
        yield f"packing_format {packing[:40]!r}; {', '.join(INC_PACKINGS)} are supported"
    if not 2 <= bits <= 8:
        yield f"AutoRound of {bits} bits; 2 to 8 are supported"
    if "mx_fp" in kind:
        if bits not in (4, 8) or k.count("group_size", default=32) != 32:
            yield "AutoRound's MXFP in other than 4 or 8 bits and groups of 32"
    elif kind not in INC_TYPES:
        yield f"data_type {kind[:20]!r}; {', '.join(INC_TYPES)} and mx_fp are supported"
    elif kind != "int":
        if bits != 8 or len(k.counts("group_size")) != 2:
            yield "AutoRound's FP8 in other than 8 bits and blocks of two sizes"
    elif bits in (4, 8) and "awq" not in k.text("packing_format") + k.text("backend"):
        group = k.count("group_size", default=128, low=-1)
        if not k.flag("sym", True) or group not in MARLIN_GROUPS:
            yield f"AutoRound of {bits} bits for Marlin, which takes symmetric weights in {_groups()}"


def _groups() -> str:
    return f"groups of {', '.join(map(str, MARLIN_GROUPS))}"


def _fp8(k: Keys) -> Iterator[str]:
    yield from _missing(k, ("activation_scheme",))
    scheme = k.text("activation_scheme", default="dynamic")
    if scheme not in ("static", "dynamic"):
        yield f"activation_scheme {scheme[:20]!r}; static and dynamic are supported"
    if k.counts("weight_block_size") and scheme != "dynamic":
        yield "weight_block_size with static activations; only dynamic ones are supported"


def _modelopt(k: Keys) -> Iterator[str]:
    inner = k.section("quantization")
    k = inner if inner.raw else k
    yield from _missing(k, ("quant_algo",))
    k.count("group_size", default=16)
    if (algorithm := k.text("quant_algo", default="FP8").upper()) not in MODELOPT:
        yield f"quant_algo {algorithm[:30]!r}; {', '.join(MODELOPT)} are supported"


def _compressed(k: Keys) -> Iterator[str]:
    groups = k.section("config_groups")
    for name in groups.raw:
        weights = groups.section(name).section("weights")
        bits, kind = weights.count("num_bits", default=8), weights.text("type", default="int")
        if weights.text("strategy") == "block" and len(weights.counts("block_structure")) != 2:
            yield "compressed-tensors' blocks need block_structure, two sizes"
        known = range(2, 9) if kind == "int" else (4, 8)
        if bits not in known:
            yield f"compressed-tensors' {kind[:20]} of {bits} bits; {', '.join(map(str, known))} are supported"


def _hqq(k: Keys) -> Iterator[str]:
    yield "hqq is no method that it knows"


def _torchao(k: Keys) -> Iterator[str]:
    kinds = k.section("quant_type").raw
    if list(kinds) != ["default"]:
        yield "quant_type must have one key, default"


LIMITS: dict[str, Callable[[Keys], Iterator[str]]] = {
    **dict.fromkeys(AWQ, _awq),
    **dict.fromkeys(("gptq", "gptq_marlin", "auto_gptq"), _gptq),
    **dict.fromkeys(("auto-round", "inc"), _inc),
    "fp8": _fp8,
    **dict.fromkeys(("modelopt", "modelopt_fp4", "modelopt_mixed"), _modelopt),
    "compressed-tensors": _compressed,
    "torchao": _torchao,
    "hqq": _hqq,
}
"""Method -> what it finds fault with."""
