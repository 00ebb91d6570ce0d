"""vLLM's own parser of `vllm serve`: its flags, their spellings and kinds of values, what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import catalog_dir
from kvplan.ground.strict_yaml import complaint_of, load_yaml
from kvplan.ground.units import human_readable_int

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
IDLE_THEN = {
    *("disable-log-requests", "swap-space", "use-v2-block-manager", "device", "enable-reasoning"),
    *(
        "disable-frontend-multiprocessing",
        "disable-mm-preprocessor-cache",
        "expand-tools-even-if-tool-choice-none",
    ),
    *("guided-decoding-backend", "guided-decoding-disable-additional-properties", "worker-use-ray"),
    *(
        "guided-decoding-disable-any-whitespace",
        "guided-decoding-disable-fallback",
        "logits-processor-pattern",
    ),
    *(
        "tokenizer-pool-extra-config",
        "tokenizer-pool-size",
        "tokenizer-pool-type",
        "multi-step-stream-outputs",
    ),
    *("eplb-log-balancedness", "use-gpu-for-pooling-score"),
}
"""Those of them that changed nothing of a plan in the versions that had them."""


@cache
def vllm_flags() -> dict[str, str]:
    """Every flag of vLLM's parser -> its kind."""
    return {name: told.split()[0] for name, told in _table().items()}


@cache
def _table() -> dict[str, str]:
    found: dict[str, str] = json.loads((catalog_dir() / "vllm_flags.json").read_text())["flags"]
    return found


@cache
def _also() -> dict[str, str]:
    """Other spellings -> flag."""
    return {also.lstrip("-"): name for name, told in _table().items() for also in told.split()[1:]}


class Age(NamedTuple):
    """From which of vLLM's series to which a flag is there; the last is none where 0.32 has it."""

    since: tuple[int, int] = (0, 0)
    until: tuple[int, int] | None = None


@cache
def flag_ages() -> dict[str, Age]:
    """Flag, also of older parsers -> its age."""
    told = json.loads((catalog_dir() / "vllm_flag_ages.json").read_text())
    ages: dict[str, Age] = {}
    for key in ("since", "until"):
        for version, names in told[key].items():
            major, minor = map(int, version.split("."))
            ages |= {name: ages.get(name, Age())._replace(**{key: (major, minor)}) for name in names.split()}
    return ages


def check_age(flag: str, version: str) -> None:
    """Raises KvplanError for a flag that is younger than a stated version of vLLM."""
    since = flag_ages().get(flag, Age()).since
    if version and tuple(map(int, version.split(".")[:2])) < since:
        came = "0.15 or 0.16" if since == (0, 15) else f"{since[0]}.{since[1]}"
        raise KvplanError(f"--{flag}: vLLM {version} has no such flag; it came with {came}")


def older_flag(name: str, version: str) -> str:
    """The flag of an older parser that a spelling is, where the stated version has it; else empty."""
    base = name.partition(".")[0].replace("_", "-")
    if base.startswith("no-") and base[3:] in flag_ages():
        base = base[3:]
    age = flag_ages().get(base, Age())
    if not version or age.until is None or base in vllm_flags():
        return ""
    return base if age.since <= tuple(map(int, version.split(".")[:2])) <= age.until else ""


def short_flags() -> dict[str, str]:
    """Spellings with one dash -> flag: -tp, -q ..."""
    return {also: name for name, told in _table().items() for also in told.split()[1:] if also[1] != "-"}


def split_flags(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(flag without dashes, its values); the flag is empty for words before the first one."""
    name: str = ""
    values: list[str] = []
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            yield name, values
            name, equals, value = word.lstrip("-").partition("=")
            if re.search(r"\s", name):
                name, equals, value = word.lstrip("-"), "", ""
            if not word.startswith("--") and (short := re.fullmatch(r"O(\d?)", name)):
                name = "optimization-level"
                equals, value = ("=", short[1]) if short[1] else (equals, value)
            values = [value] if equals else []
        else:
            values.append(word)
    yield name, values


def with_config_file(words: list[str], files: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """The words with those of --config's YAML file in its place, behind the model: the command line's own win.

    Source: vLLM 0.32 `utils/argparse_utils.py: _pull_args_from_config, load_config_file`; SGLang's
    `server_args_config_parser.py` likewise. `files` are those that the paste itself writes.
    Raises KvplanError for a file that is not there or holds no flags.
    """
    at = next((i for i, word in enumerate(words) if word == "--config" or word.startswith("--config=")), None)
    if at is None:
        return words
    _, equals, path = words[at].partition("=")
    path = path if equals else words[at + 1] if at + 1 < len(words) else ""
    rest = words[:at] + words[at + (1 if equals else 2) :]
    model = 0 if not rest or rest[0].startswith("-") else 1
    return [*rest[:model], *_file_words(path, files), *rest[model:]]


def flags_of_file(path: str, files: Mapping[str, str]) -> dict[str, Any]:
    """What a YAML file of flags says, of those that the paste writes or of this machine's."""
    if path.rpartition(".")[2] not in ("yaml", "yml"):
        raise KvplanError(f"--config {path[:60]}: a .yaml or .yml file of flags")
    written = {name.removeprefix("./"): text for name, text in files.items()}
    try:
        told = load_yaml(written.get(path.removeprefix("./")) or Path(path).read_text())
    except FileNotFoundError:
        raise KvplanError(
            f"--config {path[:60]}: cannot be read: no such file here, nor one that the paste writes; say its flags"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise KvplanError(f"--config {path[:60]}: cannot be read ({type(error).__name__})") from None
    except yaml.YAMLError as error:
        raise KvplanError(f"--config {path[:60]}: {complaint_of(error)}") from None
    if not isinstance(told, dict):
        raise KvplanError(f"--config {path[:60]}: holds no flags, name: value")
    return told


def _file_words(path: str, files: Mapping[str, str]) -> Iterator[str]:
    for key, value in flags_of_file(path, files).items():
        if isinstance(value, bool):
            if value or vllm_flags().get(str(key).replace("_", "-")) == "switch":
                yield f"--{'' if value else 'no-'}{key}"
        elif value != []:
            yield f"--{key}"
            yield from map(str, value) if isinstance(value, list) else [_word(value)]


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def known_flag(name: str) -> tuple[str, str, bool | None]:
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
    if until := flag_ages().get(base, Age()).until:
        about = GONE.get(base, f"{until[0]}.{until[1]} was the last that had it")
        raise KvplanError(f"--{base}: vLLM 0.32 has no such flag ({about})")
    if base in GONE:
        raise KvplanError(f"--{base}: vLLM 0.32 has no such flag ({GONE[base]})")
    if re.search(r"\s", base):
        raise KvplanError(
            f"unrecognized argument '--{name[:60]}': one word, blanks and all, as quotes made it"
        )
    raise KvplanError(
        f"--{base[:60]}: vLLM 0.32 has no such flag{did_you_mean(base[:60], ('tensor-parallel-size', *vllm_flags()))}"
    )


def _begun(base: str) -> list[str]:
    """Flags that a spelling begins, as the parser lets them be cut short: `--tensor-parallel 4`."""
    spelled = {**{name: name for name in vllm_flags()}, **_also()}
    return sorted({flag for name, flag in spelled.items() if len(name) > 3 and name.startswith(base)})


def _nested(inner: str, text: str) -> dict[str, Any]:
    """What `--flag.a.b 80g` puts into the flag's object; `--flag.a+ 1,2` adds to a list.

    Source: vLLM 0.32 `utils/argparse_utils.py: parse_args`.
    """
    value: Any = text.split(",") if inner.endswith("+") else plain(text)
    if isinstance(value, str):
        with suppress(KvplanError):
            value = human_readable_int(value)
    for part in reversed(inner.removesuffix("+").split(".")):
        value = {part: value}
    return dict(value)


def merge_into(told: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Lay one object over another, key by key at every depth; lists grow."""
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(told.get(key), dict):
            merge_into(told[key], value)
        elif isinstance(value, list) and isinstance(told.get(key), list):
            told[key] = told[key] + value
        else:
            told[key] = value


def flag_value(
    flag: str, kind: str, inner: str, negated: bool | None, values: list[str]
) -> tuple[Any, list[str]]:
    """A flag's value and the words that do not belong to it."""
    if inner:
        return _nested(inner, values[0] if values else "true"), values[1:]
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
    return values[0], values[1:]


def plain(text: str) -> Any:
    """A value as JSON or Python spells it; else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def object_of(value: Any, flag: str) -> dict[str, Any]:
    """A flag's JSON object; empty where the flag is not stated. Raises KvplanError for what is no object."""
    if value is None:
        return {}
    found = plain(value) if isinstance(value, str) else value
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
