"""From what people paste to an engine's own words: shell lines, docker lines, manifests, argument lists."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from kvplan.ground.errors import KvplanError

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


class NoStart(KvplanError):
    """No engine is started in what was pasted."""


def image_version(words: Sequence[str]) -> str:
    """Version in the tag of vLLM's image, as in vllm/vllm-openai:v0.19.0; empty for others."""
    found = (re.search(r"(?:^|/)vllm(?:-openai)?:v?(\d+\.\d+)(?:\.\d+)?\b", word) for word in words)
    return next((tag[1] for tag in found if tag), "")


def words_of(text: str | Sequence[str]) -> list[str]:
    """The shell's words of what was pasted: one text, or words that a shell has split already."""
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


def start_of(words: list[str]) -> tuple[dict[str, str], str, list[str]]:
    """(environment, engine, the words behind its start)."""
    environment: dict[str, str] = {}
    for i, word in enumerate(words):
        if pair := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", word, re.DOTALL):
            environment[pair[1]] = filled(pair[2].removesuffix(";"), environment)
            continue
        if len(word) > 8 and " serve " in f"{word} " and i and words[i - 1] in ("-c", "-lc"):
            inner = start_of(words_of(word))  # bash -c "vllm serve ..."
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


def filled(word: str, environment: Mapping[str, str]) -> str:
    """Shell variables by their values, or by the default that stands with them."""

    def value(found: re.Match[str]) -> str:
        name, default = found["a"] or found["b"], found["default"]
        return environment.get(name, default if default is not None else found[0])

    return re.sub(r"\$(?:\{(?P<a>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<b>\w+))", value, word)
