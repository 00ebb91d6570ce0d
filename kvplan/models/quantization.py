"""How many bytes a quantised matrix takes: schemes, and which modules of a checkpoint they convert.

Reads a config's `quantization_config` as vLLM does. Knows names and shapes of modules, no hardware.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import translate

from kvplan.models.config import Keys
from kvplan.models.modules import Module
from kvplan.models.spec import ModelSpec
from kvplan.units import cdiv


@dataclass(frozen=True, slots=True)
class Scheme:
    """Bytes of a matrix: elements of `bits`, plus one scale (and zero point) per block of it."""

    name: str
    bits: int
    scale_bytes: float = 0.0
    """Per block; a zero point's bytes are added to it."""
    block_rows: int = 1
    block_cols: int = 0
    """0: the whole row."""
    tensor_bytes: int = 0
    """Scales per matrix."""
    is_static: bool = False
    """Activations are scaled by the checkpoint's constants: no kernel looks for their maximum."""
    pad: tuple[int, int] = (1, 1)
    """Multiples that the kernel's layout rounds (output and intermediate, hidden) sizes up to."""
    least_pad: tuple[int, int] | None = None
    """The same for the kernel that rounds least; None: all alike."""

    def matrix_bytes(self, rows: int, cols: int) -> int:
        """Bytes of one `rows` x `cols` matrix with its scales."""
        blocks = cdiv(rows, self.block_rows) * cdiv(cols, self.block_cols or max(cols, 1))
        return cdiv(rows * cols * self.bits, 8) + int(blocks * self.scale_bytes) + self.tensor_bytes


FP8_TENSOR = Scheme("fp8 per tensor", 8, tensor_bytes=8)
FP8_STATIC = replace(FP8_TENSOR, is_static=True)
FP8_CHANNEL = Scheme("fp8 per channel", 8, 4)
INT8_CHANNEL = Scheme("int8 per channel", 8, 4)
MXFP4 = Scheme("mxfp4", 4, 1, block_cols=32, pad=(128, 256), least_pad=(128, 128))
"""Marlin and TensorRT-LLM's kernels pad hidden sizes to 256, CUTLASS and DeepGEMM to 128 (vLLM 0.32, `oracle/mxfp4.py:
mxfp4_round_up_hidden_size_and_intermediate_size`)."""
MXFP8 = Scheme("mxfp8", 8, 1, block_cols=32)
NVFP4 = Scheme("nvfp4", 4, 1, block_cols=16, tensor_bytes=8)
NF4 = Scheme("nf4", 4, 4, block_cols=64)
NF4_DOUBLE = Scheme("nf4, double quantised", 4, 1 + 4 / 256, block_cols=64, tensor_bytes=64 + 1024)
"""bitsandbytes' nested form: one byte per 64 elements, scaled again per 256 of those; two look-up tables."""


def fp8_block(rows: int, cols: int) -> Scheme:
    """fp8 with one float32 scale per block (DeepSeek V3: 128 x 128)."""
    return Scheme(f"fp8 per {rows}x{cols} block", 8, 4, rows, cols)


def grouped(bits: int, group: int, zeros: bool, scale_bytes: int = 2) -> Scheme:
    """Weight-only integers with a scale, and perhaps a packed zero point, per `group` columns; -1: per row."""
    zero = bits / 8 if zeros else 0.0
    return Scheme(f"int{bits} group {group}", bits, scale_bytes + zero, block_cols=max(group, 0))


Rule = Callable[[Module], Scheme | None]
"""A checkpoint's rule: the scheme of a module, or None where it stays in the model's dtype."""


def quantization_rule(model: ModelSpec, quantization: str | None = None) -> Rule:
    """Read the model's `quantization_config`; `quantization` quantises a 16-bit checkpoint on load (vLLM's flag).

    Raises:
        KvplanError: a method or format that is not known.
    """
    if model.quantization is None:
        return _on_load(model, quantization)
    k = _section(model)
    method = k.text("quant_method", default="modelopt" if "quant_algo" in k else "").lower()
    reader = METHODS.get(method)
    if reader is None:
        known = ", ".join(METHODS)
        raise k.error(f"quantization_config: quant_method {method[:40]!r} is not known ({known} are)")
    return reader(k)


def checkpoint_kv_dtype(quantization: Mapping[str, object]) -> str:
    """Return the KV dtype that a quantised checkpoint asks for, `auto` if it does not.

    compressed-tensors: any `kv_cache_scheme` is fp8. ModelOpt: a `kv_cache_scheme` or `kv_cache_quant_algo`,
    8-bit float or FP8 is fp8, 4-bit float or NVFP4 is nvfp4. Source: vLLM 0.32, `utils/torch_utils.py`.

    >>> checkpoint_kv_dtype({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"})
    'fp8_e4m3'
    """
    method = str(quantization.get("quant_method", ""))
    if not method.startswith("modelopt"):
        scheme = quantization.get("kv_cache_scheme") if method == "compressed-tensors" else None
        return "auto" if scheme is None else "fp8"
    inner = quantization.get("quantization")
    places = (inner if isinstance(inner, Mapping) else quantization, quantization)
    keys = ("kv_cache_scheme", "kv_cache_quant_algo")
    asked = next((place[key] for key in keys for place in places if place.get(key)), None)
    if isinstance(asked, Mapping):
        is_float = asked.get("type") == "float"
        bits = (
            asked.get("num_bits")
            if is_float and (asked.get("num_bits") != 8 or asked.get("dynamic") is False)
            else 0
        )
        return {8: "fp8_e4m3", 4: "nvfp4"}.get(bits if isinstance(bits, int) else 0, "auto")
    return {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}.get(str(asked).lower(), "auto")


def _section(model: ModelSpec) -> Keys:
    """The quantization_config, with ModelOpt's nested form (hf_quant_config.json) folded in."""
    k = Keys(model.name, model.quantization or {})
    return Keys(model.name, {**k.raw, **k.section("quantization").raw})


def _on_load(model: ModelSpec, quantization: str | None) -> Rule:
    if quantization is None:
        return lambda module: None
    schemes = {"fp8": FP8_TENSOR, "bitsandbytes": NF4_DOUBLE, "experts_int8": INT8_CHANNEL}
    if quantization not in schemes:
        raise Keys(model.name, {}).error(
            f"has no quantization_config, and --quantization {quantization[:40]} cannot quantise on load"
            f" ({', '.join(schemes)} can)"
        )
    scheme, experts_only = schemes[quantization], quantization == "experts_int8"

    def rule(module: Module) -> Scheme | None:
        wanted = module.role == "expert" if experts_only else module.role != "lm_head"
        return scheme if module.linear and wanted else None

    return rule


# ---- which modules


class Names:
    """A list of module names, prefixes, wildcards and `re:` patterns, as ignore lists hold them."""

    def __init__(self, entries: Iterable[str]) -> None:
        self.exact: set[str] = set()
        self.patterns: list[re.Pattern[str]] = []
        for entry in entries:
            if entry.startswith("re:"):
                self._add(entry[3:])
            elif any(c in entry for c in "*?["):
                self._add(translate(canonical(entry)))
            else:
                self.exact.add(canonical(entry))

    def _add(self, pattern: str) -> None:
        try:
            self.patterns.append(re.compile(pattern))
        except re.error:
            return  # an ignore list may hold what is no pattern; vLLM would stop at it, no weight depends on it

    def __contains__(self, name: str) -> bool:
        """Whether the list names this module, one of its parents, or one of its name's parts."""
        parts = name.split(".")
        parents = {".".join(parts[: i + 1]) for i in range(len(parts))}
        if self.exact & (parents | set(parts)):
            return True
        spelled = (*parents, *(root + name for root in ("model.", "language_model.model.")))
        return any(p.match(n) for p in self.patterns for n in spelled)


_ROOTS = ("model.", "language_model.", "backbone.", "transformer.", "decoder.")


def canonical(name: str) -> str:
    """A checkpoint's module name without its roots: model.language_model.layers.3.mlp -> layers.3.mlp."""
    while name.startswith(_ROOTS):
        name = name.partition(".")[2]
    return name.replace("shared_expert.", "shared_experts.")


def _ignored(k: Keys, *keys: str) -> Names:
    return Names(entry for key in keys for entry in k.texts(key))


def _everywhere(scheme: Scheme, ignored: Names, head: bool = False) -> Rule:
    """All linear modules but the ignored ones; the LM head only where the format says so."""

    def rule(module: Module) -> Scheme | None:
        if not module.linear or (module.role == "lm_head" and not head) or module.name in ignored:
            return None
        return scheme

    return rule


# ---- methods


def _fp8(k: Keys) -> Rule:
    block = k.counts("weight_block_size")
    if block and (len(block) != 2 or not all(block)):
        raise k.error("quantization_config: weight_block_size must be two sizes")
    scheme = fp8_block(*block) if block else FP8_TENSOR
    rule = _everywhere(scheme, _ignored(k, "modules_to_not_convert", "ignored_layers"))
    if k.text("expert_dtype") != "fp4":
        return rule
    # DeepSeek V4: scales are powers of two, one byte each; experts are MXFP4
    small = replace(scheme, scale_bytes=1)
    plain = replace(MXFP4, pad=(1, 1), least_pad=None)
    return lambda module: plain if module.role == "expert" else small if rule(module) else None


def _fbgemm(k: Keys) -> Rule:
    return _everywhere(FP8_CHANNEL, _ignored(k, "modules_to_not_convert"))


def _awq(k: Keys) -> Rule:
    bits = k.count("bits", "w_bit", default=4, high=8)
    group = k.count("group_size", "q_group_size", default=128, low=-1)
    return _everywhere(
        grouped(bits, group, k.flag("zero_point", True)),
        _ignored(k, "modules_to_not_convert"),
        k.flag("lm_head"),
    )


def _gptq(k: Keys) -> Rule:
    bits, group = k.count("bits", default=4, high=8), k.count("group_size", default=128, low=-1)
    plain = grouped(bits, group, not k.flag("sym", True))
    overrides = {
        canonical(name): Keys(k.name, v).count("bits", default=bits, high=32)
        for section in ("extra_config", "dynamic")
        for name, v in k.section(section).raw.items()
        if isinstance(v, dict)
    }
    skipped = Names(name[2:] for name in k.section("dynamic").raw if name.startswith("-:"))
    kept = Names(name for name, wide in overrides.items() if wide >= 16)
    ignored = _ignored(k, "modules_to_not_convert")

    def rule(module: Module) -> Scheme | None:
        base = _everywhere(plain, ignored, k.flag("lm_head"))(module)
        if base is None or module.name in kept or module.name in skipped:
            return None
        wide = overrides.get(module.name, bits)
        return base if wide == bits else replace(grouped(wide, group, False))

    return rule


def _auto_round(k: Keys) -> Rule:
    """As GPTQ, but blocks outside the decoder (multi-token prediction) stay as they are unless named."""
    rule, named = _gptq(k), str(k.raw.get("block_name_to_quantize", ""))
    return lambda module: None if module.name.startswith("mtp.") and "mtp" not in named else rule(module)


def _mxfp4(k: Keys) -> Rule:
    ignored = _ignored(k, "modules_to_not_convert")
    return lambda module: MXFP4 if module.role == "expert" and module.name not in ignored else None


def _bitsandbytes(k: Keys) -> Rule:
    nf4 = NF4_DOUBLE if k.flag("bnb_4bit_use_double_quant") else NF4
    scheme = INT8_CHANNEL if k.flag("load_in_8bit", k.flag("_load_in_8bit")) else nf4
    return _everywhere(scheme, _ignored(k, "llm_int8_skip_modules"))


def _compressed_tensors(k: Keys) -> Rule:
    ignored = _ignored(k, "ignore")
    groups = k.section("config_groups")
    rules: list[tuple[Names, bool, Scheme]] = []
    for key in groups.raw:
        group = groups.section(key)
        targets = group.texts("targets")
        scheme = _compressed_scheme(group.section("weights"), k)
        rules.append((Names(t for t in targets if t != "Linear"), "Linear" in targets, scheme))

    def rule(module: Module) -> Scheme | None:
        if not module.linear or module.name in ignored:
            return None
        for names, any_linear, scheme in rules:
            if (any_linear and module.role != "lm_head") or module.name in names:
                return scheme
        return None

    return rule


def _compressed_scheme(weights: Keys, k: Keys) -> Scheme:
    bits, kind = weights.count("num_bits", high=16), weights.text("type", default="int")
    strategy, group = (
        weights.text("strategy", default="tensor"),
        weights.count("group_size", default=0, low=-1),
    )
    if bits == 4 and kind == "float":
        return MXFP4_LINEAR if group == 32 else NVFP4
    if strategy == "group" or (bits < 8 and strategy == "channel"):
        return grouped(bits, group or -1, not weights.flag("symmetric", True))
    if strategy == "block":
        block = weights.counts("block_structure") or (128, 128)
        return fp8_block(*block[:2]) if len(block) >= 2 and all(block) else fp8_block(128, 128)
    if bits == 8:
        channel = FP8_CHANNEL if kind == "float" else INT8_CHANNEL
        return channel if strategy == "channel" else replace(channel, scale_bytes=0, tensor_bytes=8)
    raise k.error(f"quantization_config: {bits}-bit {kind[:20]} weights by {strategy[:20]} are not known")


MXFP4_LINEAR = replace(MXFP4, pad=(1, 1), least_pad=None)

_ALGORITHMS = {
    "FP8": FP8_STATIC,
    "FP8_PER_CHANNEL_PER_TOKEN": FP8_CHANNEL,
    "FP8_PB_WO": fp8_block(128, 128),
    "NVFP4": NVFP4,
    "W4A16_NVFP4": NVFP4,
    "NVFP4_AWQ": NVFP4,
    "MXFP4": MXFP4_LINEAR,
    "MXFP8": MXFP8,
    "W4A16_AWQ": grouped(4, 128, False),
    "W4A8_AWQ": grouped(4, 128, False),
}
"""ModelOpt's names."""


def _modelopt(k: Keys) -> Rule:
    ignored = _ignored(k, "ignore", "exclude_modules")
    algorithm = k.text("quant_algo", default="NVFP4").upper()
    if algorithm != "MIXED_PRECISION":
        return _everywhere(_algorithm(algorithm, k), ignored)
    listed = k.section("quantized_layers")
    schemes = {
        canonical(name): _algorithm(listed.section(name).text("quant_algo", default="FP8").upper(), k)
        for name in listed.raw
    }

    def rule(module: Module) -> Scheme | None:
        if not module.linear or module.name in ignored:
            return None
        parts = module.name.split(".")
        return next((s for i in range(len(parts), 0, -1) if (s := schemes.get(".".join(parts[:i])))), None)

    return rule


def _algorithm(name: str, k: Keys) -> Scheme:
    if name not in _ALGORITHMS:
        raise k.error(
            f"quantization_config: quant_algo {name[:40]!r} is not known ({', '.join(_ALGORITHMS)} are)"
        )
    return _ALGORITHMS[name]


METHODS: Mapping[str, Callable[[Keys], Rule]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "awq": _awq,
    "awq_marlin": _awq,
    "gptq": _gptq,
    "gptq_marlin": _gptq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "mxfp4": _mxfp4,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "modelopt_mixed": _modelopt,
}
