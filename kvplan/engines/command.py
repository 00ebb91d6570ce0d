"""Reading the command that starts an engine: `vllm serve ...` as people paste it, with what stands around it.

Takes shell lines with `export`s, docker lines, Kubernetes and compose manifests, argument lists, `python -m` and
`sglang.launch_server`, `trtllm-serve`. Every flag of vLLM's parser is known (`catalog/vllm_flags.json`): it acts, is
listed as without effect on the plan, or is listed as changing memory in a way that is not planned. What the parser
would refuse is refused.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kvplan.engines.flags import EngineArgs, as_count
from kvplan.engines.kv_transfer import connector_of
from kvplan.engines.spelling import WORDS, understand
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import catalog_dir
from kvplan.models.load import find_bundled, load_model, path_exists

STARTS = {
    "vllm": "vllm",
    "vllm.entrypoints.openai.api_server": "vllm",
    "vllm.entrypoints.api_server": "vllm",
    "vllm.entrypoints.cli.main": "vllm",
    "sglang": "sglang",
    "sglang.launch_server": "sglang",
    "trtllm-serve": "tensorrt-llm",
}
"""Words that start an engine."""
IMAGES = {"vllm-openai": "vllm", "vllm/vllm": "vllm", "rocm/vllm": "vllm", "lmsysorg/sglang": "sglang"}
"""Parts of a container image's name whose arguments are the engine's."""
ENDS = {"&", "&&", "|", "||", ";", ">", ">>", "2>&1", "2>", "|&", "&>", "</dev/null"}
"""Shell words behind which the command ends."""
NOT_PLANNED = {
    "cpu-offload-gb": "weights in host memory",
    "cpu-offload-params": "weights in host memory",
    "offload-backend": "weights in host memory",
    "offload-group-size": "weights in host memory",
    "offload-num-in-group": "weights in host memory",
    "enable-dbo": "two micro-batches",
    "ubatch-size": "micro-batches",
    "enable-eplb": "redundant experts",
    "eplb-config": "redundant experts",
    "prefill-context-parallel-size": "prompts split over ranks",
    "quantization-config": "quantisation of a checkpoint's own",
    "enable-sleep-mode": "memory given back while asleep",
    "mm-ipc-gpu-memory-gb": "memory for image tensors",
    "max-num-active-seqs": "waiting requests that keep KV",
    "kv-sharing-fast-prefill": "layers that skip prefill",
    "diffusion-config": "diffusion decoding",
    "engram-config": "n-gram memories",
    "use-replayssm": "states that are replayed",
    "replayssm-buffer-len": "states that are replayed",
    "offload-params": "weights in host memory",
    "offload-prefetch-step": "weights in host memory",
    "dbo-decode-token-threshold": "two micro-batches",
    "dbo-prefill-token-threshold": "two micro-batches",
    "max-num-scheduled-tokens": "steps of fewer tokens than there are buffers for",
    "long-prefill-token-threshold-adaptive": "a cap that follows the queue",
    "max-num-queued-reqs": "requests refused while many wait",
    "max-num-queued-tokens": "requests refused while many wait",
    "stream-interval": "tokens sent in groups",
    "mm-encoder-only": "an engine of the encoder alone",
    "mm-processor-kwargs": "sizes of items other than the processor's",
    "media-io-kwargs": "sizes of items other than the processor's",
    "scheduler-cls": "a scheduler of one's own",
    "enable-mamba-shared-prefix-checkpoint": "states kept where prompts part",
    "fully-sharded-loras": "adapters cut over ranks",
    "enable-moe-shared-loras": "adapters of experts",
    "enable-mixed-moe-lora-format": "adapters of experts",
    "enable-tower-connector-lora": "adapters of towers",
    "lora-dtype": "adapters in a dtype of their own",
    "dcp-q-replicate": "queries' weights on every rank",
    "video-pruning-rate": "fewer tokens of a video",
    "video-pruning-method": "fewer tokens of a video",
    "enable-batch-sharded-sampling": "sampling cut over ranks",
    **dict.fromkeys(
        (
            *("attention-config", "kernel-config", "moe-backend", "linear-backend", "mamba-backend"),
            *("mamba-ssu-algorithm", "gdn-prefill-backend", "kda-prefill-backend", "kda-decode-backend"),
            *("sparse-indexer-topk-backend", "mm-encoder-attn-backend", "mm-encoder-attn-dtype"),
            *("all2all-backend", "dcp-comm-backend", "disable-custom-all-reduce", "disable-cascade-attn"),
            "enable-hc-sp",
        ),
        "kernels: timed as the default's",
    ),
    "enable-return-routed-experts": "buffers of routed experts",
}
"""Flags that change memory, scheduling or time in ways that are not planned, and what they are about."""
OURS = {field: field.replace("_", "-") for field in EngineArgs.model_fields}
GONE = {
    "disable-log-requests": "log lines are off unless --enable-log-requests",
    "swap-space": "swapping went with the first engine",
    "num-scheduler-steps": "multi-step scheduling went with the first engine",
    "max-seq-len-to-capture": "now --max-cudagraph-capture-size",
    "use-v2-block-manager": "the only one since long",
    "guided-decoding-backend": "now --structured-outputs-config",
    "enable-reasoning": "now --reasoning-parser alone",
    "rope-scaling": "now --hf-overrides",
    "rope-theta": "now --hf-overrides",
    "task": "now --runner and --convert",
    "cuda-graph-sizes": "now --cudagraph-capture-sizes",
    "preemption-mode": "swapping went with the first engine",
    "device": "found by itself",
    "num-lookahead-slots": "now --speculative-config",
    "speculative-model": "now --speculative-config",
    "override-neuron-config": "now --additional-config",
    "enable-expert-parallelism": "--enable-expert-parallel",
}
"""Flags of older versions, and what became of them: 0.32's parser refuses them."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command, read."""

    engine: str
    model: str
    args: EngineArgs
    draft: str = ""
    """The model that drafts."""
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    no_effect: tuple[str, ...] = ()
    """Flags that do not change the plan."""
    not_planned: tuple[str, ...] = ()
    """Flags that change it in ways that are not planned, with what they are about."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """`export`ed and prefixed variables."""
    notes: tuple[str, ...] = ()
    version: str = ""
    """Of the container's image, where its tag is one."""

    @property
    def engine_asked(self) -> str:
        """The engine with its version, as `parse_engine` reads it."""
        return f"{self.engine}@{self.version}" if self.version else self.engine

    @property
    def allows_long(self) -> bool:
        """Whether lengths beyond the model's are allowed (VLLM_ALLOW_LONG_MAX_MODEL_LEN)."""
        return self.environment.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0").casefold() in ("1", "true")


@cache
def vllm_flags() -> dict[str, str]:
    """Every flag of vLLM's parser -> its kind."""
    return {name: told.split()[0] for name, told in _table().items()}


@cache
def _table() -> dict[str, str]:
    found: dict[str, str] = json.loads((catalog_dir() / "vllm_flags.json").read_text())["flags"]
    return found


class NoStart(KvplanError):
    """No engine is started in what was pasted."""


@cache
def _also() -> dict[str, str]:
    """Other spellings -> flag."""
    return {also.lstrip("-"): name for name, told in _table().items() for also in told.split()[1:]}


def read_command(text: str | Sequence[str]) -> Command:
    """Read a command: one text as pasted, or a shell's words.

    Raises:
        KvplanError: no engine is started, no model named, a flag or value that the engine's parser refuses.

    >>> told = read_command("vllm serve Qwen/Qwen3-8B -tp 2 --max-model-len 32k --port 8000")
    >>> told.model, told.args.tensor_parallel_size, told.args.max_model_len, told.no_effect
    ('Qwen/Qwen3-8B', 2, 32000, ('--port',))
    """
    words = _words(text)
    environment, engine, rest = _start(words)
    rest = [_filled(word, environment) for word in rest]
    if engine == "vllm":
        version = _image_version(words)
        notes = (f"planned as vLLM {version}, the image's version",) if version else ()
        found = _vllm(rest, environment)
        return replace(found, version=version, notes=(*found.notes, *notes))
    return _other(engine, rest, environment)


def _image_version(words: Sequence[str]) -> str:
    """Version in the tag of vLLM's image, as in vllm/vllm-openai:v0.19.0; empty for others."""
    found = (re.search(r"(?:^|/)vllm(?:-openai)?:v?(\d+\.\d+)(?:\.\d+)?\b", word) for word in words)
    return next((tag[1] for tag in found if tag), "")


def _words(text: str | Sequence[str]) -> list[str]:
    if not isinstance(text, str):
        parts = list(text)
        if len(parts) != 1 or not re.search(r"\s|^\[", parts[0]):
            return parts
        text = parts[0]
    if found := _manifest(text):
        return found
    text = re.sub(r"\\\s*\n", " ", text.replace("\r", ""))
    listed = re.findall(r"^\s*-\s+(.*?)\s*$", text, re.MULTILINE)
    if listed and not re.search(r"^\s*(vllm|python3?|docker|trtllm-serve|export)\b", text, re.MULTILINE):
        text = " ".join(_yaml_item(item) for item in listed)  # a Kubernetes args list
    elif text.lstrip().startswith("["):
        text = _json_list(text)
    lines = [re.sub(r"(^|\s)#.*$", "", line) for line in text.split("\n")]
    try:
        return shlex.split(" ; ".join(line for line in lines if line.strip()))
    except ValueError as error:
        raise KvplanError(f"the command cannot be read: {str(error).lower()}") from None


def _manifest(text: str) -> list[str]:
    """The words that a container of a Kubernetes or compose manifest starts with; none where it is no manifest."""
    if not re.search(r"^\s*(- )?(args|command|entrypoint)\s*:", text, re.MULTILINE):
        return []
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError:
        return []
    for container in _mappings(documents):
        words = [w for key in ("entrypoint", "command", "args") for w in _container_words(container.get(key))]
        image = str(container.get("image") or "")
        if words:
            known = any(part in image for part in IMAGES) and not _starts_later(words)
            return [*_container_environment(container), *(("docker", "run", image) if known else ()), *words]
    return []


def _mappings(found: Any) -> Iterator[Mapping[str, Any]]:
    """All mappings, outermost first."""
    if isinstance(found, dict):
        yield found
    for inner in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from _mappings(inner)


def _container_words(said: Any) -> list[str]:
    return shlex.split(said) if isinstance(said, str) else list(map(str, said or ()))


def _container_environment(container: Mapping[str, Any]) -> list[str]:
    """`NAME=value` of a container's variables, which Kubernetes lists and compose may map."""
    said = container.get("env") or container.get("environment") or ()
    if isinstance(said, dict):
        return [f"{name}={value}" for name, value in said.items()]
    pairs = (
        f"{one['name']}={one.get('value', '')}" if isinstance(one, dict) and "name" in one else str(one)
        for one in said
    )
    return [pair for pair in pairs if re.match(r"[A-Za-z_]\w*=", pair)]


def _yaml_item(item: str) -> str:
    quoted = len(item) > 1 and item[0] == item[-1] and item[0] in "'\""
    return shlex.quote(item[1:-1] if quoted else item)


def _json_list(text: str) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return shlex.join(map(str, found)) if isinstance(found, list) else text


def _start(words: list[str]) -> tuple[dict[str, str], str, list[str]]:
    """(environment, engine, the words behind its start)."""
    environment: dict[str, str] = {}
    for i, word in enumerate(words):
        if pair := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", word, re.DOTALL):
            environment[pair[1]] = _filled(pair[2], environment)
            continue
        if len(word) > 8 and " serve " in f"{word} " and i and words[i - 1] in ("-c", "-lc"):
            inner = _start(_words(word))  # bash -c "vllm serve ..."
            return {**environment, **inner[0]}, inner[1], inner[2]
        name = word.rpartition("/")[2] if not word.startswith("-") else ""
        engine = STARTS.get(name) or STARTS.get(word)
        if engine and _is_start(words, i, name):
            rest = words[i + 1 :]
            return environment, engine, _ended(rest[1:] if rest and rest[0] == "serve" else rest)
        image = next((e for part, e in IMAGES.items() if part in word.partition(":")[0]), "")
        if image and "run" in words[:i] and not _starts_later(words[i + 1 :]):
            return environment, image, _ended(words[i + 1 :])
    if words and words[0].startswith("--"):
        return environment, "vllm", _ended(words)  # arguments alone, as in a Kubernetes list
    raise NoStart(
        "no engine is started: paste vllm serve MODEL ..., python -m sglang.launch_server ... or trtllm-serve MODEL ..."
    )


def _is_start(words: list[str], i: int, name: str) -> bool:
    if name in ("vllm", "sglang"):
        return i + 1 < len(words) and words[i + 1] == "serve"
    return True


def _starts_later(words: list[str]) -> bool:
    return any(STARTS.get(word) and _is_start(words, i, word) for i, word in enumerate(words)) or any(
        word in ("-c", "-lc") for word in words
    )


def _ended(words: list[str]) -> list[str]:
    kept = []
    for word in words:
        if word in ENDS or word.startswith((">", "2>")):
            break
        if word.endswith(";") and len(word) > 1:
            kept.append(word[:-1])
            break
        kept.append(word)
    return kept


def _filled(word: str, environment: Mapping[str, str]) -> str:
    """Shell variables by their values, or by the default that stands with them."""

    def value(found: re.Match[str]) -> str:
        name, default = found["a"] or found["b"], found["default"]
        return environment.get(name, default if default is not None else found[0])

    return re.sub(r"\$(?:\{(?P<a>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<b>\w+))", value, word)


# ---- vLLM


def _split_flags(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(flag without dashes, its values); the flag is empty for words before the first one."""
    name: str = ""
    values: list[str] = []
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            yield name, values
            name, equals, value = word.lstrip("-").partition("=")
            if not word.startswith("--") and (short := re.fullmatch(r"O(\d)", name)):
                name, equals, value = "optimization-level", "=", short[1]
            values = [value] if equals else []
        else:
            values.append(word)
    yield name, values


def _known(name: str) -> tuple[str, str, bool | None]:
    """(flag, key within its JSON, False where negated); raises for what vLLM's parser refuses."""
    base, _, inner = name.partition(".")
    base = _also().get(base, base.replace("_", "-"))
    if base in vllm_flags():
        return base, inner, None
    if base.startswith("no-") and vllm_flags().get(base[3:]) == "switch":
        return base[3:], inner, False
    if len(begun := _begun(base)) == 1:
        return begun[0], inner, None
    if begun:
        raise KvplanError(f"--{base}: ambiguous, could be {', '.join(f'--{name}' for name in begun[:4])}")
    if base in GONE:
        raise KvplanError(f"--{base}: vLLM 0.32 has no such flag ({GONE[base]})")
    raise KvplanError(
        f"--{base[:60]}: vLLM 0.32 has no such flag{did_you_mean(base[:60], ('tensor-parallel-size', *vllm_flags()))}"
    )


def _begun(base: str) -> list[str]:
    """Flags that a spelling begins, as the parser lets them be cut short: `--tensor-parallel 4`."""
    spelled = {**{name: name for name in vllm_flags()}, **_also()}
    return sorted({flag for name, flag in spelled.items() if len(name) > 3 and name.startswith(base)})


def _vllm(words: list[str], environment: dict[str, str]) -> Command:
    told: dict[str, Any] = {}
    model, unaffected, unplanned = "", [], []
    for i, (name, values) in enumerate(_split_flags(words)):
        if i == 0:
            model = values[0] if values else ""
            if len(values) > 1:
                raise KvplanError(f"unrecognized argument {values[1][:60]!r} behind the model {model[:60]!r}")
            continue
        flag, inner, negated = _known(name)
        kind = vllm_flags()[flag]
        value, spare = _value(flag, kind, inner, negated, values)
        model = model or (spare[0] if spare else "")
        if flag in ("model", "model-tag"):
            model = str(value)
        elif flag == "kv-transfer-config" and connector_of(value) not in (None, "OffloadingConnector"):
            unplanned.append(f"--{flag} (connector {connector_of(value)})")
        elif flag in NOT_PLANNED and negated is None:
            unplanned.append(f"--{flag} ({NOT_PLANNED[flag]})")
        elif flag in ACTS:
            merged = isinstance(told.get(flag), dict) and isinstance(value, dict)
            told[flag] = {**told[flag], **value} if merged else value
        else:
            unaffected.append(f"--{flag}")
    if not model:
        raise KvplanError("the command names no model")
    fields, draft, notes = _fields(told)
    return Command(
        engine="vllm",
        model=model,
        args=EngineArgs(**fields),
        draft=draft,
        hf_overrides=_object(told.get("hf-overrides"), "hf-overrides"),
        no_effect=tuple(dict.fromkeys(unaffected)),
        not_planned=tuple(dict.fromkeys(unplanned)),
        environment=environment,
        notes=tuple(notes),
    )


ACTS = {
    *OURS.values(),
    *(
        "speculative-config",
        "spec-method",
        "spec-model",
        "spec-tokens",
        "hf-overrides",
    ),
    *("max-cudagraph-capture-size", "cudagraph-capture-sizes", "compilation-config", "optimization-level"),
    "disable-sliding-window",
}
"""Flags that act on the plan."""


def _value(
    flag: str, kind: str, inner: str, negated: bool | None, values: list[str]
) -> tuple[Any, list[str]]:
    """A flag's value and the words that do not belong to it."""
    if inner:
        value = _plain(values[0]) if values else True
        for part in reversed(inner.split(".")):
            value = {part: value}
        return value, values[1:]
    if kind == "switch":
        if values and values[0].casefold() in ("true", "false"):
            return values[0].casefold() == "true", values[1:]
        return (True if negated is None else negated), values
    if kind == "list":
        return tuple(values), []
    if not values:
        if kind == "maybe":
            return True, []
        raise KvplanError(f"--{flag}: expected one argument")
    if "$" in values[0] and flag in ACTS:
        raise KvplanError(f"--{flag} {values[0]}: the variable's value is not stated")
    return values[0], values[1:]


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _object(value: Any, flag: str) -> dict[str, Any]:
    if value is None:
        return {}
    found = _plain(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        would = _as_json(str(value))
        raise KvplanError(
            f"--{flag}: must be a JSON object, not {str(value)[:60]}" + (f"; as {would}" if would else "")
        )
    return found


def _as_json(text: str) -> str:
    """What `key=number,key=number`, the form of older versions, is as JSON; empty for what is not of that form."""
    pairs = [part.split("=") for part in text.split(",")]
    if len(text) > 60 or not all(len(pair) == 2 and pair[1].isdecimal() for pair in pairs):
        return ""
    return f"'{json.dumps({key: int(number) for key, number in pairs})}'"


def _fields(told: Mapping[str, Any]) -> tuple[dict[str, Any], str, list[str]]:
    """Fields of `EngineArgs`, the draft model, notes."""
    fields = {name: told[flag] for name, flag in OURS.items() if flag in told}
    notes: list[str] = []
    speculation = _object(told.get("speculative-config"), "speculative-config")
    for key, flag in (
        ("method", "spec-method"),
        ("model", "spec-model"),
        ("num_speculative_tokens", "spec-tokens"),
    ):
        if flag in told:
            speculation[key] = told[flag]
    draft = ""
    if speculation:
        found, draft = _speculation(speculation)
        fields |= found
    limits = _object(told.get("limit-mm-per-prompt"), "limit-mm-per-prompt")
    if limits:
        fields["limit_mm_per_prompt"] = limits
    if _graphs_off(told):
        fields["enforce_eager"] = True
    elif _states_graphs(told):
        notes.append(
            "CUDA graphs are planned as the engine chooses them, not at the sizes or in the mode stated"
        )
    if _sized_items(told.get("limit-mm-per-prompt")):
        notes.append("--limit-mm-per-prompt: items are planned at their largest, whatever size is stated")
    if told.get("performance-mode") == "interactivity":
        notes.append("--performance-mode interactivity: finer CUDA graphs are not planned")
    if told.get("disable-sliding-window"):
        notes.append("--disable-sliding-window shortens the context to the window")
    return fields, draft, notes


def _states_graphs(told: Mapping[str, Any]) -> bool:
    """Whether sizes of CUDA graphs are stated, or a mode in which some are left out."""
    compilation = told.get("compilation-config")
    config = {} if str(compilation).strip().isdigit() else _object(compilation, "compilation-config")
    mode = str(config.get("cudagraph_mode", "")).upper().rpartition(".")[2]
    sizes = ("cudagraph_capture_sizes", "max_cudagraph_capture_size")
    named = any(key in config or key.replace("_", "-") in told for key in sizes)
    return named or mode not in ("", "FULL_AND_PIECEWISE")


def _sized_items(limits: Any) -> bool:
    """Whether limits state sizes of items too."""
    told = _object(limits, "limit-mm-per-prompt")
    return any(isinstance(limit, dict) and limit.keys() - {"count"} for limit in told.values())


def _graphs_off(told: Mapping[str, Any]) -> bool:
    """No CUDA graphs: level 0, mode NONE, or no sizes to capture."""
    compilation = told.get("compilation-config")
    if isinstance(compilation, str) and compilation.strip().isdigit():
        return compilation.strip() == "0"
    config = _object(compilation, "compilation-config")
    mode = str(config.get("cudagraph_mode", "")).upper().rpartition(".")[2]
    size = told.get("max-cudagraph-capture-size", config.get("max_cudagraph_capture_size"))
    return mode == "NONE" or str(told.get("optimization-level")) == "0" or str(size) == "0"


MTP_NAMES = """
    mtp deepseek_mtp dots3_note_mtp mimo_mtp mimo_v2_mtp glm4_moe_mtp glm4_moe_lite_mtp glm_ocr_mtp ernie_mtp
    nemotron_h_mtp exaone_moe_mtp exaone4_5_mtp qwen3_next_mtp qwen4_exp_mtp qwen3_5_mtp longcat_flash_mtp
    bailing_hybrid_v3_mtp minimax_m3_mtp bailing_hybrid_mtp kimi_k3_mtp pangu_ultra_moe_mtp step3p5_mtp hy_v3_mtp
    hy_v4_mtp gemma4_mtp inkling_mtp glm5_next_mtp
"""
METHODS = {"ngram": "ngram", "[ngram]": "ngram", "ngram_gpu": "ngram", "suffix": "ngram"}
METHODS |= {"draft_model": "draft_model", "eagle": "eagle", "eagle3": "eagle", "dspark": "dspark"}
METHODS |= dict.fromkeys(MTP_NAMES.split(), "mtp")
"""vLLM 0.32's names of methods -> kvplan's."""
UNPLANNED_METHODS = ("medusa", "mlp_speculator", "dflash", "extract_hidden_states", "custom_class")


def _speculation(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """How vLLM reads --speculative-config: the method, or what the model's name says; tokens as stated."""
    method, draft = str(config.get("method") or ""), str(config.get("model") or "")
    if not method:
        method = "ngram" if draft in ("ngram", "[ngram]") else "draft_model"
    if method == "draft_model":
        method = _method_of(draft)
    if method in UNPLANNED_METHODS:
        raise KvplanError(
            f"--speculative-config: method {method!r} is not planned; without the flag the plan is that of the model"
            " alone, and its drafter takes more"
        )
    if method not in METHODS:
        raise KvplanError(
            f"--speculative-config: vLLM has no method {method[:40]!r}{did_you_mean(method[:40], METHODS)}"
        )
    tokens, short = config.get("num_speculative_tokens"), METHODS[method]
    if tokens is not None and str(tokens).strip() in ("0", "-0"):
        raise KvplanError("--speculative-config: num_speculative_tokens must be at least 1")
    if tokens is None and method == "suffix":
        tokens = config.get("suffix_decoding_max_tree_depth", 24)
    if tokens is None:
        raise KvplanError("--speculative-config: num_speculative_tokens is missing")
    if short in ("eagle", "draft_model") and not draft:
        raise KvplanError(f"--speculative-config: method {method!r} needs a model")
    apart = short in ("eagle", "draft_model", "dspark") or (short == "mtp" and _drafts_apart(draft))
    return {"num_speculative_tokens": tokens, "speculative_method": short}, draft if apart else ""


def _drafts_apart(draft: str) -> bool:
    """Whether a model named for multi-token prediction is one of its own, as Gemma 4's are; others are the target."""
    known = draft and (find_bundled(draft) or path_exists(Path(draft)))
    return bool(known) and load_model(draft).backbone_hidden_size > 0


def _method_of(draft: str) -> str:
    """What vLLM takes a model that drafts for, by its name."""
    name = draft.casefold()
    if "eagle-" in name:
        return "eagle"
    return next((method for method in ("eagle3", "dflash", "dspark") if method in name), "draft_model")


# ---- other engines


DEGREES = {
    spelling: f"{short}_size"
    for short, whole in (("tp", "tensor"), ("pp", "pipeline"), ("dp", "data"), ("ep", "expert"))
    for spelling in (short, f"{whole}_parallel_size")
}
"""Other spellings of parallel sizes."""


def _other(engine: str, words: list[str], environment: dict[str, str]) -> Command:
    """SGLang's and TensorRT-LLM's flags by their words; what has none is listed as without effect."""
    spoken: dict[str, Any] = {}
    unaffected, model = [], ""
    known = {w for word in WORDS[engine] for w in (word.word, *word.also)}
    known |= {"enable_dp_attention"}
    for i, (name, values) in enumerate(_split_flags(words)):
        if i == 0:
            model = values[0] if values else ""
            continue
        key = name.replace("-", "_")
        key = DEGREES.get(key, key)
        if key in ("model_path", "model"):
            model = values[0] if values else ""
        elif key in known:
            spoken[key] = _number(values[0]) if values else True
        else:
            unaffected.append(f"--{name}")
    if not model:
        raise KvplanError("the command names no model")
    notes = _data_parallel(spoken) if engine == "sglang" else []
    fields = understand(spoken, engine)
    return Command(
        engine=engine,
        model=model,
        args=EngineArgs(**fields),
        no_effect=tuple(dict.fromkeys(unaffected)),
        environment=environment,
        notes=tuple(notes),
    )


def _data_parallel(spoken: dict[str, Any]) -> list[str]:
    """SGLang's two kinds: attention in parts of the tensor-parallel ranks, or whole copies; said as vLLM's, with notes.

    Sizes are ranks: `--tp 8 --dp 8 --enable-dp-attention` are 8 GPUs, each with all heads and an eighth of the experts.
    """
    tp, dp, inside = (
        spoken.get("tp_size", 1),
        spoken.get("dp_size", 1),
        spoken.pop("enable_dp_attention", False),
    )
    if not isinstance(tp, int) or not isinstance(dp, int) or dp < 2:
        return []
    if not inside:
        spoken["dp_size"] = 1
        return [f"--dp {dp}: whole copies of the model; this is one of them"]
    if tp % dp:
        raise KvplanError(f"--enable-dp-attention: --tp {tp} does not divide into --dp {dp} parts")
    spoken["tp_size"] = tp // dp
    return [
        f"--enable-dp-attention: {tp} GPUs, attention in {dp} parts; dense MLPs and the LM head counted whole in each"
    ]


def _number(text: str) -> Any:
    try:
        return as_count(text)
    except (ValueError, KvplanError):
        return _plain(text)
