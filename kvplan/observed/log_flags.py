"""Flags, model and card that a log's configuration lines tell. Only known keys with plain values are taken:

a log may hold API keys and tokens, and nothing of a line is kept but what is asked for here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from kvplan.engines.compilation_config import compilation_text
from kvplan.engines.ec_transfer import ec_transfer_text
from kvplan.engines.engram import engram_text
from kvplan.engines.eplb import eplb_text
from kvplan.engines.generation import generation_text
from kvplan.engines.kernel_flags import attention_text, kernel_text
from kvplan.engines.kv_transfer import kv_transfer_text
from kvplan.engines.mm_limits import mm_limits_text, processor_text
from kvplan.engines.pooler_config import pooler_text
from kvplan.engines.sampling_config import priority_text, watermark_text
from kvplan.engines.speculative_config import ACTING, METHODS, speculation_text
from kvplan.engines.spelling import WORDS, logged_words, understand
from kvplan.formulas.graphs import MODES
from kvplan.ground.config import json_object
from kvplan.models.quantization import quantization_text

FLAG_LINES = (
    "with config:",
    "non-default args",
    "Namespace(",
    "server_args=",
    "vllm serve",
    "api_server",
    "launch_server",
    "trtllm-serve",
    "max_num_batched_tokens",
    "speculative_config",
)
"""Literals of lines that tell flags."""

_VALUE = r"""(?P<q>['"]?)(?P<value>[\w.+/-]{1,64})(?P=q)"""


def _pairs(words: list[str]) -> re.Pattern[str]:
    keys = "|".join(sorted(words, key=len, reverse=True))
    return re.compile(rf"""(?<![\w-])['"]?(?P<key>{keys})['"]?\s?[=:]\s?{_VALUE}(?=[\s,)}}\]]|$)""")


def _options(words: list[str]) -> re.Pattern[str]:
    keys = "|".join(sorted(words, key=len, reverse=True)).replace("_", "[-_]")
    return re.compile(rf"""(?<!\w)--?(?P<key>(?:no-)?(?:{keys}))(?:(?:\s+|=){_VALUE})?(?=[\s'",\]]|$)""")


_PATTERNS = {engine: (_pairs(words), _options(words)) for engine in WORDS if (words := logged_words(engine))}
_METHOD = re.compile(
    r"""(?:SpeculativeConfig\(|speculative[-_]config['"]?(?:\s?[:=]\s?|\s+)['"]?\{).{0,200}?method['"]?\s?[=:]\s?['"](\w+)"""
)
_NO_DRAFTS = re.compile(r"""speculative_config['"]?\s?[=:]\s?(?:None|null)\b""")
_NAMES = {
    word: re.compile(
        rf"""(?<![a-z][-_]){word.replace("_", "[-_]")}['"]?(?:\s?[=:]\s?[\[{{](?P<list>[\w'",. ]*)[\]}}]"""
        rf"""|(?P<words>(?:\s+['"]?[\w.]+['"]?(?!\S))+))"""
    )
    for word in ("kv_cache_dtype_skip_layers", "cpu_offload_params", "offload_params", "lora_target_modules")
}
"""Flags of several names: as logs print lists and sets, or as words behind the flag."""
_MODEL = re.compile(
    r"""(?:\b(?:model|model_tag|model_path)['"]?\s?[=:]\s?['"]|--model(?:-path)?[ =]['"]?"""
    r"""|(?:vllm|trtllm-)\s?serve\s+['"]?)(?P<model>[A-Za-z0-9_./~-][\w./~-]{1,199})(?=['"\s,)]|$)"""
)
_SECRET = re.compile(r"^(?:hf_|sk-|ghp_|github_pat_)", re.IGNORECASE)
_TRUTH = {"True": True, "true": True, "False": False, "false": False}

_GPU = (
    re.compile(r"GPU \d+: ((?:NVIDIA|AMD|Tesla|GeForce)[\w .+/-]{2,60}?)(?= \(UUID|\s*[(,|]|\s*$)"),
    re.compile(r"\|\s+\d+\s+((?:NVIDIA|Tesla|GeForce|AMD)[\w .+/-]{2,40}?)\s+(?:On|Off)\s*\|"),
    re.compile(r"device_name=((?:NVIDIA|AMD)[\w-]{2,60}?)(?:,|\.json|['\s)]|$)"),
)
GPU_LINES = ("GPU ", "NVIDIA", "device_name=", "AMD")
_GENERATION = re.compile(r"override[-_]generation[-_]config['\"]?[=: ]+'?(\{[^{}]{0,400}\})")
_LIMITS = re.compile(
    r"limit[-_]mm[-_]per[-_]prompt\W{1,4}(\{[^{}]{0,200}(?:\{[^{}]{0,100}\}[^{}]{0,100}){0,6}\})"
)
_EPLB = re.compile(r"eplb[-_]config\W{1,4}(\{[^{}]{0,400}\})")
_SIZES = re.compile(
    r"""cudagraph[-_]capture[-_]sizes['"]?"""
    r"""(?:\s?[:=]\s?\[(?P<list>[\d, ]{1,4000})\]|(?P<words>(?:\s+\d+(?!\S)){1,400}))"""
)
_MODE = re.compile(
    r"""cudagraph_mode['"]?\s?[:=]\s?(?:<?CUDAGraphMode\.|['"])?(?P<mode>[A-Z_]{4,20}\b|\[\d, ?\d\]|\d\b)"""
)
_MODES = {
    "[2,1]": "FULL_AND_PIECEWISE",
    "[2,0]": "FULL_DECODE_ONLY",
    "0": "NONE",
    "1": "PIECEWISE",
    "2": "FULL",
}
"""Modes as logs print their numbers."""
_QUANTIZATION = re.compile(r"(?<![a-z][-_])quantization[-_]config\W{1,4}(\{[^{}]{0,400}\})")
_ENGRAM = re.compile(r"engram[-_]config\W{1,4}(\{[^{}]{0,400}\})")


def read_flags(line: str, engine: str) -> dict[str, object]:
    """Known flags of one configuration line, by `EngineArgs` field; `None` and unknown values left out."""
    pairs, options = _PATTERNS[engine]
    spoken: dict[str, object] = {}
    for match in pairs.finditer(line):
        spoken.setdefault(match["key"], _value(match["value"]))
    if "--" in line or " -tp" in line:
        for match in options.finditer(line):
            key = match["key"].replace("-", "_")
            spoken.setdefault(
                key.removeprefix("no_"), _value(match["value"] or str(not key.startswith("no_")))
            )
    objects = {
        **{field: _object(field, line, read) for field, read in _OBJECTS.items()},
        "limit_mm_per_prompt": _limits(line),
        "eplb_config": _flat(line, _EPLB, eplb_text),
        "quantization_config": _flat(line, _QUANTIZATION, quantization_text),
        "engram_config": _flat(line, _ENGRAM, engram_text),
        "override_generation_config": _generation(line),
    }
    for word, told in objects.items():
        spoken.pop(word, None)
        if told:
            spoken[word] = told
    for inner in json.loads(str(spoken.get("kernel_config") or "{}")):
        spoken.pop(inner, None)  # read as a flag of that name too
    spoken.pop("compilation_config", None)
    found = understand({word: value for word, value in spoken.items() if value is not None}, engine)
    if method := _METHOD.search(line):
        found["speculative_method"] = _method(method[1])
    if _NO_DRAFTS.search(line):
        found["num_speculative_tokens"] = 0
    for word, names in _NAMES.items():
        if layers := names.search(line):
            found[word] = tuple(re.findall(r"[\w.]+", layers["list"] or layers["words"] or ""))
    return found | _graphs(line, found)


def _graphs(line: str, found: Mapping[str, object]) -> dict[str, object]:
    """CUDA graphs as a command states them or a log prints what was settled; printed sizes have their largest too."""
    told: dict[str, object] = {}
    if sizes := _SIZES.search(line):
        each = sorted({int(n) for n in re.findall(r"\d+", sizes["list"] or sizes["words"])} - {0})
        told = {"cudagraph_capture_sizes": tuple(each)}
        told |= {"max_cudagraph_capture_size": None} if found.get("max_cudagraph_capture_size") else {}
    mode = _MODE.search(line)
    name = _MODES.get(mode["mode"].replace(" ", ""), mode["mode"]) if mode else ""
    if name in MODES:
        told["compilation_config"] = compilation_text({"cudagraph_mode": name})
    return told


def _object(field: str, line: str, read: Callable[[object], str | None]) -> str | None:
    """vLLM's JSON behind a flag, where it is planned; other KV connectors move KV and leave the pool alone."""
    begin = field.replace("_", "[-_]") + r"\W{1,4}(?=\{)"
    if not (begun := re.search(begin, line)):
        return None
    try:
        return read(json.JSONDecoder().raw_decode(line[begun.end() :])[0])
    except ValueError:
        return None


def _flat(line: str, pattern: re.Pattern[str], read: Callable[[str], str | None]) -> str | None:
    """A JSON object without others inside, as a command says it."""
    if not (begun := pattern.search(line)):
        return None
    try:
        return read(begun[1].replace("'", '"'))
    except ValueError:
        return None


def _acting(told: object) -> str | None:
    """Of what a line says of drafting, the keys that act: others may hold what is nobody's business."""
    return speculation_text({key: value for key, value in json_object(told).items() if key in ACTING})


def _sizes(told: object) -> str | None:
    """Numbers of an object of options and of those within it; words are left out."""
    kept = {
        key: {name: n for name, n in value.items() if isinstance(n, int | float)}
        if isinstance(value, Mapping)
        else value
        for key, value in json_object(told).items()
        if isinstance(value, Mapping | int | float)
    }
    return processor_text(kept)


def _limits(line: str) -> str | None:
    """vLLM's items per prompt, as a command says them or a log prints them."""
    if not (begun := _LIMITS.search(line)):
        return None
    try:
        return mm_limits_text(begun[1].replace("'", '"'))
    except ValueError:
        return None


def _generation(line: str) -> str | None:
    """Sampling parameters for requests that leave them out."""
    if not (begun := _GENERATION.search(line)):
        return None
    try:
        return generation_text(begun[1].replace("'", '"'))
    except ValueError:
        return None


def _value(text: str) -> object:
    """A flag's plain value: truth, number or a short word; None for None."""
    if text in _TRUTH:
        return _TRUTH[text]
    if text in ("None", "null", "") or _SECRET.match(text):
        return None
    plain = text.removeprefix("torch.")
    try:
        return int(plain)
    except ValueError:
        pass
    try:
        return float(plain)
    except ValueError:
        return plain


def _method(name: str) -> str:
    return "mtp" if name.endswith("mtp") else METHODS.get(name, name)


def read_model(line: str) -> str:
    """The model's name or path in a configuration line; empty if there is none."""
    match = _MODEL.search(line)
    if match is None or _SECRET.match(match["model"]) or "//" in match["model"]:
        return ""
    return match["model"].rstrip("/.,")


def read_gpu(line: str) -> str:
    """The card's product name in a line of collect_env, nvidia-smi or a kernel's config file; else empty."""
    match = next((m for pattern in _GPU if (m := pattern.search(line))), None)
    return match[1].replace("_", " ").strip() if match else ""


_OBJECTS: dict[str, Callable[[object], str | None]] = {
    "kv_transfer_config": kv_transfer_text,
    "ec_transfer_config": ec_transfer_text,
    "watermark_config": watermark_text,
    "ir_op_priority": priority_text,
    "pooler_config": pooler_text,
    "speculative_config": _acting,
    "attention_config": attention_text,
    "kernel_config": kernel_text,
    "mm_processor_kwargs": _sizes,
    "media_io_kwargs": _sizes,
}
"""Fields that are JSON objects of any depth -> what reads them."""
