"""From what people paste to an engine's own words: shell lines, docker lines, manifests, argument lists."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
OPERATORS = "();|&\n"
"""What a shell ends a word at, and a command."""


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
    text = re.sub(r"^(ExecStart|Environment)=", "", text, flags=re.MULTILINE)  # a systemd unit
    listed = re.findall(r"^\s*-\s+(.*?)\s*$", text, re.MULTILINE)
    if listed and not re.search(r"^\s*(vllm|python3?|docker|trtllm-serve|export)\b", text, re.MULTILINE):
        text = " ".join(_yaml_item(item) for item in listed)  # a Kubernetes args list
    elif text.lstrip().startswith("["):
        text = _json_list(text)
    return _split(text)


def _split(text: str) -> list[str]:
    """A shell's words and operators; a substitution, and an array that is assigned, are one word.

    >>> _split("(cd x && A=(-tp 2); vllm serve m >log)")
    ['(', 'cd', 'x', '&&', 'A=-tp 2', ';', 'vllm', 'serve', 'm', '>log', ')']
    """
    lexer = shlex.shlex(
        re.sub(r"(^|[ \t])#[^\n'\"]*$", r"\1", text, flags=re.MULTILINE),
        posix=True,
        punctuation_chars=OPERATORS,
    )
    lexer.whitespace_split, lexer.commenters, lexer.whitespace = True, "", " \t"
    try:
        tokens = list(lexer)
    except ValueError as error:
        raise KvplanError(f"the command cannot be read: {str(error).lower()}") from None
    words: list[str] = []
    rest = iter(tokens)
    for word in rest:
        if word.startswith("(") and words and words[-1].endswith("$"):
            words[-1] += f"{word}{' '.join(_to_the_bracket(rest))}{')' * len(word)}"
        elif word.startswith("(") and words and re.fullmatch(r"[A-Za-z_]\w*\+?=", words[-1]):
            words[-1] += shlex.join(w for w in _to_the_bracket(rest) if not _is_operator(w))
        else:
            words.append(word)
    return words


def _to_the_bracket(words: Iterator[str]) -> Iterator[str]:
    """The words before the bracket that closes."""
    for word in words:
        if _is_operator(word) and ")" in word:
            return
        yield word


def _is_operator(word: str) -> bool:
    return bool(word) and set(word) <= set(OPERATORS)


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
            named = ("docker", "run", image) if known else (image,) if image else ()
            return [*_container_environment(container), *named, *words]
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
    """(environment, engine, the words behind its start), variables by their values.

    Raises:
        NoStart: no engine is started, also not within a word (`bash -c`, `ssh host`, `tmux new`).
    """
    if found := next(starts_of(words), None):
        return found
    environment: dict[str, str] = {}
    for word in words:
        _assign(word, environment)
    if words and words[0].startswith("--"):
        return environment, "vllm", _ended(words, environment)  # arguments alone, as in a Kubernetes list
    for word in words:
        inner = filled(word, environment)
        if re.search(r"\S\s+\S", inner):
            with suppress(NoStart):
                told, engine, rest = start_of(words_of(inner))
                return {**environment, **told}, engine, rest
    raise NoStart(
        "no engine is started: paste vllm serve MODEL ..., python -m sglang.launch_server ... or trtllm-serve MODEL ..."
    )


def starts_of(words: list[str]) -> Iterator[tuple[dict[str, str], str, list[str]]]:
    """All engines that the words start one after another, as `start_of` says it; those within a word are not found."""
    environment: dict[str, str] = {}
    for i, word in enumerate(words):
        if not _assign(word, environment) and (found := _start_at(words, i)):
            yield dict(environment), found, _ended(words[i + 1 :], environment)


def _assign(word: str, environment: dict[str, str]) -> bool:
    """Keep the variable that a word sets; False for a word that sets none."""
    pair = re.fullmatch(r"([A-Za-z_]\w*)(\+?)=(?!=)(.*)", word, re.DOTALL)
    if pair:
        before = f"{environment.get(pair[1], '')} " if pair[2] else ""
        environment[pair[1]] = before + filled(pair[3], environment)
    return pair is not None


def _start_at(words: list[str], i: int) -> str:
    """The engine that this word starts, by its own name or its image's; empty where it starts none."""
    word = words[i]
    name = word.rpartition("/")[2] if not word.startswith("-") else ""
    if (engine := STARTS.get(name) or STARTS.get(word, "")) and _is_start(words, i, name):
        return engine
    image = next((e for part, e in IMAGES.items() if part in word.partition(":")[0]), "")
    return image if image and "run" in words[:i] and not _starts_later(words[i + 1 :]) else ""


def _is_start(words: list[str], i: int, name: str) -> bool:
    if name in ("vllm", "sglang"):
        return i + 1 < len(words) and words[i + 1] == "serve"
    return True


def _starts_later(words: list[str]) -> bool:
    return any(STARTS.get(word) and _is_start(words, i, word) for i, word in enumerate(words)) or any(
        word in ("-c", "-lc") for word in words
    )


def _ended(words: list[str], environment: Mapping[str, str]) -> list[str]:
    """The command's own words; a variable that holds several flags is several words, as a shell has it."""
    kept: list[str] = []
    for word in words[1:] if words[:1] == ["serve"] else words:
        if _is_operator(word) or re.match(r"\d?[<>]|&>", word):
            break
        several = re.fullmatch(r"\$(?:\{(\w+)(\[@\])?\}|(\w+))", word)
        value = environment.get(several[1] or several[3], "") if several else ""
        if several and (several[2] or value.startswith("-")):
            kept += _split(value)
        else:
            kept.append(filled(word, environment))
    return kept


def filled(word: str, environment: Mapping[str, str]) -> str:
    """Shell variables by their values, or by the default that stands with them."""

    def value(found: re.Match[str]) -> str:
        name, default = found["a"] or found["b"], found["default"]
        return environment.get(name, default if default is not None else found[0])

    return re.sub(r"\$(?:\{(?P<a>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<b>\w+))", value, word)
