"""How many bytes a quantised matrix takes: schemes, and which modules of a checkpoint they convert.

Reads a config's `quantization_config` as vLLM does. Knows names and shapes of modules, no hardware.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import translate
from typing import Any

from kvplan.ground.config import json_object
from kvplan.ground.units import cdiv
from kvplan.models.config import Keys
from kvplan.models.modules import Module
from kvplan.models.spec import ModelSpec


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
    sets_apart: bool = False
    """vLLM on ROCm sets rows of whole 512 bytes apart, unless they are experts'."""
    widens_experts: bool = False
    """Experts of a card without kernels for them are held in 16 bits, as linear layers are."""
    weights_alone: bool = False
    """Activations are not quantised."""

    def matrix_bytes(self, rows: int, cols: int) -> int:
        """Bytes of one `rows` x `cols` matrix with its scales."""
        blocks = cdiv(rows, self.block_rows) * cdiv(cols, self.block_cols or max(cols, 1))
        return cdiv(rows * cols * self.bits, 8) + int(blocks * self.scale_bytes) + self.tensor_bytes


FP8_TENSOR = Scheme("fp8 per tensor", 8, tensor_bytes=8)
FP8_STATIC = replace(FP8_TENSOR, is_static=True)
FP8_CHANNEL = Scheme("fp8 per channel", 8, 4)
FP8_APART = replace(FP8_TENSOR, sets_apart=True)
INT8_CHANNEL = Scheme("int8 per channel", 8, 4)
MXFP4 = Scheme("mxfp4", 4, 1, block_cols=32, pad=(128, 256), least_pad=(128, 128))
"""Marlin and TensorRT-LLM's kernels pad hidden sizes to 256, CUTLASS and DeepGEMM to 128 (vLLM 0.32, `oracle/mxfp4.py:
mxfp4_round_up_hidden_size_and_intermediate_size`)."""
MXFP8 = Scheme("mxfp8", 8, 1, block_cols=32)
MXFP8_MODELOPT = replace(MXFP8, widens_experts=True)
MXFP8_BLOCK = replace(MXFP8, name="mxfp8 per 32x32 block")
"""One scale for 32 rows too, loaded as one for each."""
NVFP4 = Scheme("nvfp4", 4, 1, block_cols=16, tensor_bytes=8)
NF4 = Scheme("nf4", 4, 4, block_cols=64)
NF4_DOUBLE = Scheme("nf4, double quantised", 4, 1 + 4 / 256, block_cols=64, tensor_bytes=64 + 1024)
"""bitsandbytes' nested form: one byte per 64 elements, scaled again per 256 of those; two look-up tables."""


def fp8_block(rows: int, cols: int) -> Scheme:
    """fp8 with one float32 scale per block (DeepSeek V3: 128 x 128)."""
    return Scheme(f"fp8 per {rows}x{cols} block", 8, 4, rows, cols, sets_apart=True)


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
    base = reader(k)
    if quantization is None or not quantization.startswith("{"):
        return base
    beside = _stated(json.loads(quantization))
    return lambda module: base(module) or beside(module)


def quantization_text(value: Any) -> str | None:
    """`--quantization-config` as vLLM takes it, in one spelling; raises ValueError for another.

    >>> quantization_text('{"moe": "fp8_per_block", "ignore": ["re:.*gate"]}')
    '{"ignore": ["re:.*gate"], "moe": "fp8_per_block"}'
    """
    if value is None:
        return None
    told = dict(json_object(value))
    if unknown := sorted(told.keys() - {"linear", "moe", "ignore", "targets"}):
        raise ValueError(f"has no key {unknown[0][:40]!r}; linear, moe, ignore, targets are")
    targets = told.get("targets") or {}
    if targets and (told.get("linear") or told.get("moe")):
        raise ValueError("targets stand without linear and moe")
    names = [_weight(told[key]) for key in ("linear", "moe") if told.get(key) is not None]
    for name in (*(n for n in names if n is not None), *targets.values()):
        if name not in OF_WEIGHTS:
            raise ValueError(
                f"unknown quantization name {str(name)[:40]!r}; expected one of {', '.join(OF_WEIGHTS)}"
            )
    kept = {key: part for key, part in told.items() if part}
    return json.dumps(kept, sort_keys=True) if kept else None


def quantization_name(value: Any) -> Any:
    """`--quantization` as vLLM takes it, a name; raises ValueError for an object, which has a flag of its own."""
    if str(value).lstrip().startswith(("{", "[")):
        raise ValueError(
            f"must be a name, as fp8, not {str(value)[:40]}; an object goes to --quantization-config"
        )
    return value


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


ON_LOAD = {
    "fp8": FP8_TENSOR,
    "fp8_per_tensor": FP8_TENSOR,
    "fp8_per_channel": FP8_CHANNEL,
    "fp8_per_block": fp8_block(128, 128),
    "int8_per_channel_weight_only": INT8_CHANNEL,
    "mxfp8": MXFP8,
    "mxfp4": MXFP4,
    "nvfp4_per_token": NVFP4,
    "experts_int8": INT8_CHANNEL,
    "bitsandbytes": NF4_DOUBLE,
}
"""What `--quantization` makes of a 16-bit checkpoint."""
EXPERTS_ONLY = ("experts_int8", "int8_per_channel_weight_only", "nvfp4_per_token")
"""Of these, what leaves all but experts alone (vLLM 0.32 `config/quantization.py: _ONLINE_SHORTHANDS`)."""
OF_WEIGHTS = ON_LOAD | {
    "fp8_per_tensor_static": FP8_TENSOR,
    "fp8_per_channel_static": FP8_CHANNEL,
    "fp8_per_block_static": fp8_block(128, 128),
    "int8_per_channel_static": INT8_CHANNEL,
    "int4_per_group_32": grouped(4, 32, zeros=False),
}
"""Names of weights' formats in `--quantization-config` too."""


def _on_load(model: ModelSpec, quantization: str | None) -> Rule:
    if quantization is None:
        return lambda module: None
    if quantization.startswith("{"):
        told = json.loads(quantization)
        base = told["base"] if "targets" not in told else None
        if base in ON_LOAD:
            told = {"moe": base, **({} if base in EXPERTS_ONLY else {"linear": base}), **told}
        return _stated(told)
    schemes = ON_LOAD
    if quantization not in schemes:
        raise Keys(model.name, {}).error(
            f"has no quantization_config, and --quantization {quantization[:40]} cannot quantise on load"
            f" ({', '.join(schemes)} can)"
        )
    scheme, experts_only = schemes[quantization], quantization in EXPERTS_ONLY

    def rule(module: Module) -> Scheme | None:
        wanted = module.role == "expert" if experts_only else module.role != "lm_head"
        return scheme if module.linear and wanted else None

    return rule


def _stated(told: Mapping[str, Any]) -> Rule:
    """`--quantization-config`: formats of linear layers and of experts, but for the ignored; or of named layers."""
    kinds = {
        role: OF_WEIGHTS.get(str(_weight(told.get(key)))) for key, role in (("moe", "expert"), ("linear", ""))
    }
    ignored = Names(told.get("ignore", ()))
    targets = [(Names([name]), ON_LOAD[scheme]) for name, scheme in told.get("targets", {}).items()]

    def rule(module: Module) -> Scheme | None:
        if not module.linear or module.role == "lm_head" or module.name in ignored:
            return None
        if targets:
            return next((scheme for names, scheme in targets if module.name in names), None)
        return kinds["expert" if module.role == "expert" else ""]

    return rule


def _weight(spec: Any) -> Any:
    """The weights' format of a spec, which may be its name alone."""
    return spec.get("weight") if isinstance(spec, Mapping) else spec


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
        if "shared_experts." in name:  # patterns keep the checkpoint's own spelling
            spelled += tuple(n.replace("shared_experts.", "shared_expert.") for n in spelled)
        return any(p.match(n) for p in self.patterns for n in spelled)


_ROOTS = ("model.", "language_model.", "backbone.", "transformer.", "decoder.")


def canonical(name: str) -> str:
    """A checkpoint's module name without its roots: model.language_model.layers.3.mlp -> layers.3.mlp."""
    while name.startswith(_ROOTS):
        name = name.partition(".")[2]
    if name.partition(".")[0].isdecimal():  # Ling 3 names a layer by its number alone
        name = f"layers.{name}"
    return re.sub(r"shared_expert(?=\.|$)", "shared_experts", name)


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
    static = k.text("activation_scheme") == "static"
    scheme = fp8_block(*block) if block else replace(FP8_APART, is_static=static)
    # an expert that is listed keeps the layer's from being converted, as vLLM 0.32 `is_layer_skipped` reads it
    listed = (n for key in ("modules_to_not_convert", "ignored_layers") for n in k.texts(key))
    rule = _everywhere(scheme, Names(re.sub(r"(\.experts)\.\d+\..*", r"\1", n) for n in listed))
    if "mxfp4" in (k.text("store_dtype"), k.text("routed_experts_quant_method")):  # MiMo V2.6, Ling 3
        return lambda module: rule(module) and (MXFP4 if module.role == "expert" else rule(module))
    if k.text("expert_dtype") != "fp4":
        return rule
    if tuple(block) == (
        32,
        32,
    ):  # DeepSeek V4.1: vLLM 0.32 loads these as MXFP8, `models/deepseek_v41/quant_config.py`
        return lambda module: MXFP4 if module.role == "expert" else MXFP8_BLOCK if rule(module) else None
    # DeepSeek V4: scales are powers of two, one byte each; experts are MXFP4, or NVFP4 with a key of their own, which
    # vLLM 0.32 takes for those of prediction layers too (`models/deepseek_v4/quant_config.py`)
    small = replace(scheme, scale_bytes=1)
    given = k.text("moe_quant_algo").upper() == "NVFP4"
    plain = NVFP4 if given else MXFP4_LINEAR
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
    overrides = {
        canonical(name): Keys(k.name, v).count("bits", default=bits, high=32)
        for name, v in k.section("extra_config").raw.items()
        if isinstance(v, dict)
    }
    kept = Names(name for name, wide in overrides.items() if wide >= 16)
    base = _everywhere(
        grouped(bits, group, not k.flag("sym", True)),
        _ignored(k, "modules_to_not_convert"),
        k.flag("lm_head"),
    )
    told, among = _dynamic(k), _in_block(k)

    def rule(module: Module) -> Scheme | None:
        scheme = base(module)
        if scheme is None or module.name in kept or not among(module.name):
            return None
        for pattern, other in told:
            if any(pattern.match(name) for name in _gptq_names(module.name)):
                return other
        wide = overrides.get(module.name, bits)
        return scheme if wide == bits else grouped(wide, group, False)

    return rule


def _dynamic(k: Keys) -> list[tuple[re.Pattern[str], Scheme | None]]:
    """GPTQModel's rules by patterns of names, the first that matches holds: `-:` leaves modules as they are, `+:` or
    nothing before it gives them other sizes. Source: vLLM 0.32 `utils/gptq_utils.py: get_dynamic_override`."""
    found = []
    for name, told in k.section("dynamic").raw.items():
        inner = Keys(k.name, {**k.raw, **told} if isinstance(told, dict) else k.raw)
        bits, group = inner.count("bits", default=4, high=16), inner.count("group_size", default=128, low=-1)
        try:
            pattern = re.compile(name.removeprefix("+:").removeprefix("-:"))
        except re.error:
            raise k.error(f"quantization_config: dynamic: {name[:40]!r} is no pattern") from None
        kept = name.startswith("-:") or bits >= 16
        found.append((pattern, None if kept else grouped(bits, group, not inner.flag("sym", True))))
    return found


def _in_block(k: Keys) -> Callable[[str], bool]:
    """Whether `modules_in_block_to_quantize` has a module or a part of its name; all are in where there is no list."""
    listed = k.raw.get("modules_in_block_to_quantize") or []
    if not isinstance(listed, list):
        raise k.error("quantization_config: modules_in_block_to_quantize must be a list")
    flat = [name for entry in listed for name in (entry if isinstance(entry, list) else [entry])]
    if not all(isinstance(name, str) for name in flat):
        raise k.error("quantization_config: modules_in_block_to_quantize must be names")
    return lambda name: not flat or any(part in f"model.{name}" for part in flat)


def _gptq_names(name: str) -> tuple[str, ...]:
    """A module as vLLM calls it, alone and as a part of what it fuses: its root before it."""
    parent, _, last = name.rpartition(".")
    fused = {**dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj")}
    fused |= dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj")
    names = (name, f"{parent}.{fused[last]}") if last in fused else (name,)
    return tuple(root + each for root in ("model.", "") for each in names)


def _auto_round(k: Keys) -> Rule:
    """As GPTQ, or in AutoRound's floats; blocks outside the decoder (multi-token prediction) stay unless named."""
    kind, named = k.text("data_type"), str(k.raw.get("block_name_to_quantize", ""))
    rule = _gptq(k) if not kind or kind == "int" else _everywhere(_auto_round_float(k, kind), Names(()))
    return lambda module: None if module.name.startswith("mtp.") and "mtp" not in named else rule(module)


def _auto_round_float(k: Keys, kind: str) -> Scheme:
    """MXFP4, MXFP8 or FP8 in blocks, whose two sizes stand where groups have one."""
    if "mx_fp" in kind:
        return MXFP4_LINEAR if k.count("bits", default=4) == 4 else MXFP8
    block = k.counts("group_size")
    if kind not in ("fp", "fp8") or len(block) != 2 or not all(block):
        raise k.error(f"quantization_config: AutoRound's {kind[:20]!r} in groups of {block} is not known")
    return fp8_block(*block)


def _mxfp4(k: Keys) -> Rule:
    ignored = _ignored(k, "modules_to_not_convert")
    return lambda module: MXFP4 if module.role == "expert" and module.name not in ignored else None


def _mxfp8(k: Keys) -> Rule:
    return _everywhere(
        MXFP8_MODELOPT, _ignored(k, "ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers")
    )


def _bitsandbytes(k: Keys) -> Rule:
    nf4 = NF4_DOUBLE if k.flag("bnb_4bit_use_double_quant") else NF4
    scheme = INT8_CHANNEL if k.flag("load_in_8bit", k.flag("_load_in_8bit")) else nf4
    return _everywhere(scheme, _ignored(k, "llm_int8_skip_modules"))


FORGOTTEN = ("re:.*routed_expert_(down|up)_proj$",)
"""Modules in 16 bits that the list of Kimi-K3, the published model in this format, does not name."""


def _compressed_tensors(k: Keys) -> Rule:
    mxfp4 = k.text("format") == "mxfp4-pack-quantized"
    ignored = Names([*k.texts("ignore"), *(FORGOTTEN if mxfp4 else ())])
    groups = k.section("config_groups")
    rules: list[tuple[Names, bool, Scheme]] = []
    for key in groups.raw:
        group = groups.section(key)
        targets = group.texts("targets")
        scheme = _compressed_scheme(group.section("weights"), k)
        read = group.section("input_activations").raw
        scheme = replace(scheme, weights_alone=not read, is_static=bool(read) and not read.get("dynamic"))
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
    if bits == 8 and kind == "float" and group == 32:
        return MXFP8
    if strategy == "group" or (bits < 8 and strategy == "channel"):
        return grouped(bits, group or -1, not weights.flag("symmetric", True))
    if strategy == "block":
        block = weights.counts("block_structure") or (128, 128)
        return fp8_block(*block[:2]) if len(block) >= 2 and all(block) else fp8_block(128, 128)
    if bits == 8:
        channel = FP8_CHANNEL if kind == "float" else INT8_CHANNEL
        whole = replace(channel, scale_bytes=0, tensor_bytes=8, sets_apart=kind == "float")
        return channel if strategy == "channel" else whole
    raise k.error(f"quantization_config: {bits}-bit {kind[:20]} weights by {strategy[:20]} are not known")


MXFP4_LINEAR = replace(MXFP4, pad=(1, 1), least_pad=None)

_ALGORITHMS = {
    "FP8": FP8_STATIC,
    "FP8_PER_CHANNEL_PER_TOKEN": FP8_CHANNEL,
    **dict.fromkeys(("FP8_PB_WO", "FP8_BLOCK_SCALES"), fp8_block(128, 128)),
    "NVFP4": NVFP4,
    "W4A16_NVFP4": NVFP4,
    "NVFP4_AWQ": NVFP4,
    "MXFP4": MXFP4_LINEAR,
    "MXFP8": MXFP8_MODELOPT,
    "W4A16_AWQ": grouped(4, 128, False),
    "W4A8_AWQ": grouped(4, 128, False),
}
"""ModelOpt's names."""


def _modelopt(k: Keys) -> Rule:
    ignored = _ignored(k, "ignore", "exclude_modules")
    algorithm = k.text("quant_algo", default="NVFP4").upper()
    if (
        algorithm != "MIXED_PRECISION"
    ):  # the head too, unless listed; of configs without a list nothing is known
        return _everywhere(_algorithm(algorithm, k), ignored, "ignore" in k or "exclude_modules" in k)
    listed = k.section("quantized_layers")
    schemes = {
        canonical(name): _algorithm(layer.text("quant_algo", default="FP8").upper(), layer)
        for name in listed.raw
        if (layer := listed.section(name))
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
    scheme = _ALGORITHMS[name]
    return replace(scheme, block_cols=k.count("group_size", default=16)) if scheme is NVFP4 else scheme


# ---- Quark


def _quark(k: Keys) -> Rule:
    """AMD's: one config for all layers, others by name, a list of those left alone.

    As vLLM 0.32 reads the list: names and `re:` patterns hold, wildcards do not; experts are all left alone or none.
    """
    listed = k.texts("exclude")
    experts = [name.partition(".experts.")[0] + ".experts" for name in listed if ".experts." in name]
    ignored = Names([*experts, *(name for name in listed if name.startswith("re:") or "*" not in name)])
    whole = _quark_scheme(k.section("global_quant_config"), k)
    named = k.section("layer_quant_config")
    others = [(Names([name]), _quark_scheme(named.section(name), k)) for name in named.raw]

    def rule(module: Module) -> Scheme | None:
        if not module.linear or module.role == "lm_head" or module.name in ignored:
            return None
        return next((scheme for names, scheme in others if module.name in names), whole)

    return rule


def _quark_scheme(config: Keys, k: Keys) -> Scheme | None:
    """The scheme of one of Quark's configs; None where it leaves weights alone."""
    told = config.raw.get("weight")
    if isinstance(told, list):  # two steps of scales: NVFP4
        return NVFP4 if len(told) > 1 else _quark_scheme(Keys(k.name, {"weight": told[0]}), k)
    weight = config.section("weight")
    dtype, scheme = weight.text("dtype"), weight.text("qscheme", default="per_tensor")
    if not dtype:
        return None
    if dtype in ("fp4", "mx") and weight.text("mx_element_dtype", default="fp4") == "fp4":
        return replace(MXFP4_LINEAR, weights_alone=not config.raw.get("input_tensors"))
    if dtype.startswith(("fp6", "fp8")) and scheme == "per_group":
        return replace(MXFP8, name=f"mx{dtype[:3]}", bits=int(dtype[2]))
    if scheme == "per_block":
        sizes = weight.counts("block_size") or (128, 128)
        return fp8_block(*sizes[:2]) if len(sizes) >= 2 and all(sizes) else fp8_block(128, 128)
    if dtype.startswith("fp8"):
        return FP8_CHANNEL if scheme == "per_channel" else FP8_TENSOR
    if dtype == "int8":
        return (
            INT8_CHANNEL if scheme == "per_channel" else replace(INT8_CHANNEL, scale_bytes=0, tensor_bytes=8)
        )
    if dtype in ("int4", "uint4"):
        return grouped(4, weight.count("group_size", default=-1, low=-1), dtype == "uint4")
    raise k.error(f"quantization_config: Quark's {dtype[:20]} weights {scheme[:20]} are not known")


# ---- torchao, HQQ, GGUF: no class of vLLM 0.32 sizes them; held to their libraries' own and to published files


def _torchao(k: Keys) -> Rule:
    """A config class of torchao's, or one for each module; experts stay as they are (vLLM converts linear layers)."""
    default = k.section("quant_type").section("default")
    skipped = _ignored(k, "modules_to_not_convert")
    data = default.section("_data")
    each = data.section("module_fqn_to_config").raw or data.section("fqn_to_config").raw
    if not each:
        whole: Scheme | None = _torchao_scheme(default, k)
        schemes: list[tuple[Names, Scheme | None]] = []
    else:
        read = {
            name: _torchao_scheme(Keys(k.name, v), k) if isinstance(v, dict) else None
            for name, v in each.items()
        }
        whole = read.pop("_default", None)
        schemes = [(Names([name]), scheme) for name, scheme in read.items()]

    def rule(module: Module) -> Scheme | None:
        if not module.linear or module.role in ("expert", "lm_head") or module.name in skipped:
            return None
        return next((scheme for names, scheme in schemes if module.name in names), whole)

    return rule


def _torchao_scheme(config: Keys, k: Keys) -> Scheme:
    """Bytes by torchao's config class: 4-bit weights for its tiled kernels, or spread out to bytes for the others.

    A group has a scale of 16 bits and a zero point: of 16 bits for the tiled kernels, of a byte for the others.
    """
    kind, data = config.text("_type"), config.section("_data")
    group = data.count("group_size", default=128, low=-1)
    if kind == "Int4WeightOnlyConfig":
        return Scheme(f"int4 group {group}", 4, 4, block_cols=max(group, 0))
    if kind.startswith("Float8"):
        granularity = str(data.raw.get("granularity"))
        return FP8_CHANNEL if "PerRow" in granularity or kind == "Float8WeightOnlyConfig" else FP8_TENSOR
    if kind in ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"):
        return INT8_CHANNEL
    if kind in (
        "Int8DynamicActivationInt4WeightConfig",
        "Int8DynamicActivationIntxWeightConfig",
        "IntxWeightOnlyConfig",
    ):
        return Scheme("int4 in bytes", 8, 3, block_cols=group if "group_size" in data else 0)
    raise k.error(f"quantization_config: torchao's {kind[:60]!r} is not known")


def _hqq(k: Keys) -> Rule:
    """Half-quadratic quantisation: a scale and a zero point, 16 bits each, per group; ten 3-bit weights in 32 bits."""
    config = k.section("quant_config")
    sizes = config.section("weight_quant_params") if "weight_quant_params" in config else k
    bits, group = (
        sizes.count("nbits", "bits", default=4, high=8),
        sizes.count("group_size", default=64, low=-1),
    )
    stored, spread = {3: (3, 0.2), 5: (8, 0.0), 6: (8, 0.0), 7: (8, 0.0)}.get(bits, (bits, 0.0))
    beside = 4 + spread * max(group, 0) / 8
    scheme = Scheme(f"hqq {bits} bits, group {group}", stored, beside, block_cols=max(group, 0))
    return _everywhere(scheme, _ignored(k, "skip_modules"))


GGUF_BITS = {
    **{
        "IQ1_S": 2.0042,
        "IQ1_M": 2.146,
        "IQ2_XXS": 2.3824,
        "IQ2_XS": 2.5882,
        "IQ2_S": 2.7403,
        "IQ2_M": 2.9294,
    },
    **{
        "IQ3_XXS": 3.2548,
        "IQ3_XS": 3.4977,
        "IQ3_S": 3.6606,
        "IQ3_M": 3.7628,
        "IQ4_XS": 4.4597,
        "IQ4_NL": 4.6818,
    },
    **{
        "Q2_K_S": 2.9697,
        "Q2_K": 3.1593,
        "Q3_K_S": 3.6429,
        "Q3_K_M": 3.996,
        "Q3_K_L": 4.2979,
        "Q4_K_S": 4.6672,
    },
    **{
        "Q4_K_M": 4.8944,
        "Q5_K_S": 5.5704,
        "Q5_K_M": 5.7036,
        "Q6_K": 6.5633,
        "Q8_0": 8.5008,
        "F16": 16.0,
        "BF16": 16.0,
    },
    **{"Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_1": 6.0, "MXFP4": 4.25, "F32": 32.0},
}
"""Bits per weight of a whole file, by the name it bears: mixes as llama.cpp's quantize makes them of Llama-3.1-8B
(its tools/quantize/README.md; Q3_K_M from its first edition), plain types as their blocks are."""


def _gguf(k: Keys) -> Rule:
    """Every matrix of a GGUF file, embedding and head too, at the file's mean bits per weight."""
    named = k.text("file_type").upper().removeprefix("UD-")
    bits = k.raw.get("bits_per_weight", GGUF_BITS.get(named))
    if not isinstance(bits, int | float) or not 0 < bits <= 64:
        raise k.error(
            f"quantization_config: GGUF type {named[:20]!r} is not known ({', '.join(GGUF_BITS)} are)"
        )
    whole = int(bits)
    scheme = Scheme(f"gguf {named or 'file'}", whole, (bits - whole) / 8, block_cols=1)
    return lambda module: scheme if module.linear or module.role in ("embedding", "lm_head") else None


METHODS: Mapping[str, Callable[[Keys], Rule]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "awq": _awq,
    "awq_marlin": _awq,
    "gptq": _gptq,
    "gptq_marlin": _gptq,
    "auto_awq": _awq,
    "auto_gptq": _gptq,
    "auto-round": _auto_round,
    "inc": _auto_round,
    "intel/auto-round": _auto_round,
    "mxfp4": _mxfp4,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "modelopt_mixed": _modelopt,
    "modelopt_mxfp8": _mxfp8,
    "mxfp8": _mxfp8,
    "quark": _quark,
    "torchao": _torchao,
    "hqq": _hqq,
    "gguf": _gguf,
}
