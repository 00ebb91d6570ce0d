"""Which engine is started by what people paste: a line, a script, a manifest; with which words and environment.

Knows how a command starts another: docker and podman, kubectl, compose, uvx and pipx, `bash -c` and all that takes a
command as a word. Sources: docker run, kubectl run and kubectl create deployment, uv's tool run: their references.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvplan.engines.pasted.expansion import UNSTATED
from kvplan.engines.pasted.manifests import dockerfile_lines, manifest_lines
from kvplan.engines.pasted.shell import Script, Simple
from kvplan.ground.errors import KvplanError

STARTS = {
    "vllm": "vllm",
    "vllm.entrypoints.openai.api_server": "vllm",
    "vllm.entrypoints.api_server": "vllm",
    "vllm.entrypoints.cli.main": "vllm",
    "vllm/entrypoints/openai/api_server.py": "vllm",
    "sglang": "sglang",
    "sglang.launch_server": "sglang",
    "sglang_router.launch_server": "sglang",
    "trtllm-serve": "tensorrt-llm",
}
"""Words that start an engine."""
SUBCOMMANDS = ("vllm", "sglang")
"""Of which `serve` starts it."""
IMAGES = {
    "vllm-openai": "vllm",
    "vllm/vllm": "vllm",
    "rocm/vllm": "vllm",
    "lmsysorg/sglang": "sglang",
    "tensorrt-llm/release": "tensorrt-llm",
}
"""Parts of a container image's name whose arguments are the engine's."""
OTHER_IMAGES = re.compile(
    "router|operator|proxy|scheduler|sim|exporter|bench|webui|controller|download|client"
)
"""What is named after an engine and does not start it."""
RUNNERS = ("docker", "podman", "nerdctl", "apptainer", "singularity", "sudo")
TAKE_A_WORD = {
    *(
        "-e",
        "--env",
        "--env-file",
        "-v",
        "--volume",
        "--mount",
        "-p",
        "--publish",
        "--name",
        "-u",
        "--user",
        "-w",
    ),
    *(
        "--workdir",
        "--gpus",
        "--ipc",
        "--network",
        "--net",
        "--shm-size",
        "--entrypoint",
        "--device",
        "--ulimit",
    ),
    *(
        "--runtime",
        "--restart",
        "--cap-add",
        "--security-opt",
        "--group-add",
        "-l",
        "--label",
        "-h",
        "--hostname",
    ),
    *(
        "--pull",
        "--memory",
        "--cpus",
        "--cpuset-cpus",
        "--platform",
        "--log-opt",
        "--add-host",
        "--pid",
        "--bind",
        "-B",
    ),
}
"""Options of docker, podman and compose that take the next word."""
SPEAKERS = {
    *(
        "echo",
        "printf",
        "grep",
        "egrep",
        "pgrep",
        "pkill",
        "kill",
        "killall",
        "which",
        "type",
        "command",
        "man",
    ),
    *(
        "ps",
        "cat",
        "tail",
        "curl",
        "wget",
        "sleep",
        "pip",
        "pip3",
        "alias",
        "test",
        "[",
        "[[",
        "watch",
        "rm",
        "mkdir",
    ),
}
"""Commands whose words start nothing."""
DEEPEST = 5
"""Commands within words of commands."""
PACKAGE = re.compile(r"(?P<name>vllm|sglang)(?:\[[^\]]*\])?(?:@|==|~=)v?(?P<version>\d+\.\d+(?:\.\w+)*)")
"""A package with its version, as pip and uv take it."""


class NoStart(KvplanError):
    """No engine is started in what was pasted."""


@dataclass(slots=True)
class Started:
    """An engine's start, read."""

    engine: str
    words: list[str]
    """Behind its start."""
    environment: Mapping[str, str]
    prefix: Mapping[str, str] = field(default_factory=dict)
    """Variables that stand before the command: its own words are expanded without them."""
    hidden: Mapping[str, str] = field(default_factory=dict)
    """Variables that are set and do not reach it."""
    version: str = ""
    said_by: str = ""
    """What says the version."""
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Starts:
    """All that a paste starts."""

    starts: list[Started] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    """Variables that the shell made words of."""
    files: dict[str, str] = field(default_factory=dict)
    """Files that the paste writes."""


def find_starts(said: str | Sequence[str]) -> Starts:
    """The engines that a text, or words that a shell has split already, start.

    Raises:
        NoStart: none is, also not within a word (`bash -c`, `ssh host`, `tmux new`).

    >>> [start] = find_starts("TP=2; vllm serve m -tp $TP >log &").starts
    >>> start.engine, start.words
    ('vllm', ['m', '-tp', '2'])
    """
    found = Starts()
    if not isinstance(said, str):
        if len(said) != 1 or not re.search(r"\s|^[\[{]", said[0]):
            return _of_words(list(said), found)
        said = said[0]
    _search(_lines_of(said, Script(), found), found, DEEPEST)
    for written in list(found.files.values()) if not found.starts else ():
        _search(_readable(written, Script(), found), found, DEEPEST - 1)
    return _sure(found)


def _of_words(words: list[str], found: Starts) -> Starts:
    _search([Simple(words)], found, DEEPEST)
    return _sure(found)


def _sure(found: Starts) -> Starts:
    if not found.starts:
        raise NoStart(
            "no engine is started: paste vllm serve MODEL ..., python -m sglang.launch_server ..."
            " or trtllm-serve MODEL ..."
        )
    return found


def _lines_of(text: str, script: Script, found: Starts) -> list[Simple]:
    """The commands of a text: a manifest's, a Dockerfile's, a list's, else a shell's."""
    text = text.replace("\r", "")
    if blocks := _FENCED.findall(text):
        return [line for block in blocks for line in _readable(textwrap.dedent(block), script, found)]
    if lines := manifest_lines(text) or dockerfile_lines(text):
        return lines
    lines = script.read(_as_script(text))
    if not any(_start_of(line, alone=False) for line in lines):
        lines += script.uncalled()
    found.used |= script.used
    found.files |= script.files
    return lines


_FENCED = re.compile(r"^[ \t]*(?:```|~~~)[^\n`]*\n(.*?)^[ \t]*(?:```|~~~)[ \t]*$", re.MULTILINE | re.DOTALL)
"""A block of code within prose."""


def _readable(text: str, script: Script, found: Starts) -> list[Simple]:
    """The commands of one of many texts: not all are of a shell."""
    try:
        return _lines_of(text, script, found)
    except KvplanError:
        return []


def _as_script(text: str) -> str:
    """Without what is not the shell's: marks of Markdown and notebooks, prompts, the keys of a systemd unit."""
    if re.search(r"^[\w.-]+[ \t]*:(?!=).*\n\t", text, re.MULTILINE):
        text = _as_recipes(text)
    text = re.sub(r"^\s*(```|~~~).*$", "", text, flags=re.MULTILINE)
    text = re.sub(
        r"^(%%(bash|sh)\b.*|\s*(?:[\w.-]+@[\w.-]+[^\n$#]*)?\$ +|!(?=\w))", "", text, flags=re.MULTILINE
    )
    text = re.sub(r"[ \t][`^][ \t]*\n", " ", text)  # as PowerShell and cmd go on
    text = re.sub(r"^ExecStart=[-@:+!]*", "", text, flags=re.MULTILINE)
    return re.sub(r"^Environment=", "export ", text, flags=re.MULTILINE)


def _as_recipes(text: str) -> str:
    """A Makefile's recipes, with its variables as the shell's."""
    text = re.sub(r"^[\w.-]+[ \t]*:(?!=).*$", "", text, flags=re.MULTILINE)
    text = re.sub(
        r"^(\w+)[ \t]*[:?+]?=[ \t]*(.*)$", lambda m: f"{m[1]}={_in_quotes(m[2])}", text, flags=re.MULTILINE
    )
    text = re.sub(r"^\t[@-]+", "\t", text, flags=re.MULTILINE)
    return re.sub(r"\$\((\w+)\)", r"${\1}", text).replace("$$", "$")


def _in_quotes(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _search(lines: Sequence[Simple], found: Starts, depth: int) -> None:
    """The starts of these commands; where there are none, of the texts within them."""
    said: dict[str, str] = {}
    for i, line in enumerate(lines):
        said |= _versions(line.words)
        if start := _start_of(line, alone=len(lines) == 1):
            if not start.version and start.engine in said:
                start.version, start.said_by = said[start.engine], "the version that is installed"
            start.notes += _cut_off(lines[i + 1 :])
            found.starts.append(start)
    if not found.starts and depth:
        for line in lines:
            _search_within(line, found, depth, said)


def _cut_off(following: Sequence[Simple]) -> list[str]:
    """A flag that begins a command: what stands before it did not go on."""
    words = following[0].words if following else []
    if not words or not re.match(r"--?[A-Za-z]", words[0]):
        return []
    return [
        f"{_shown(words[0])} and what follows it begin a command of their own: the line before does not go on"
    ]


def _search_within(line: Simple, found: Starts, depth: int, said: Mapping[str, str]) -> None:
    """Texts that a command is given: a word of several words, a here-document."""
    if line.words[:1] and line.words[0].rpartition("/")[2] in SPEAKERS - {"cat"}:
        return
    environment, _ = _environment_of(line)
    for word in [*line.words, line.text]:
        if not re.search(r"\S\s+\S", word):
            continue
        inner = Script(dict(environment), exported=set(environment))
        try:
            lines = _lines_of(word.replace(f"{UNSTATED}$", f"{UNSTATED}\\$"), inner, found)
        except KvplanError:
            if depth == DEEPEST and len(line.words) == 1:
                raise
            continue
        before = len(found.starts)
        _search(lines, found, depth - 1)
        for start in found.starts[before:]:
            version, said_by = _version_of(start.engine, line, said)
            start.version, start.said_by = (
                (start.version, start.said_by) if start.version else (version, said_by)
            )
        if len(found.starts) > before:
            return


def _start_of(line: Simple, alone: bool) -> Started | None:
    """The engine that a command starts, by its own name or its image's."""
    words = line.words
    if not words or words[0].rpartition("/")[2] in SPEAKERS:
        return None
    at, engine = next(((i, e) for i in range(len(words)) if (e := _named(words, i))), (-1, ""))
    notes: list[str] = []
    if engine:
        rest = words[at + (2 if words[at + 1 : at + 2] == ["serve"] else 1) :]
    elif line.image:
        engine, rest = _of_image(line.image, known=False) if line.by_image else "", words
    elif given := _given_to_image(words):
        engine, rest, notes = given
    elif alone and words[0].startswith("--"):
        engine, rest = "vllm", words  # arguments alone, as in a Kubernetes list
    else:
        return None
    if not engine:
        return None
    environment, hidden = _environment_of(line, at if at >= 0 else len(words))
    version, said_by = _version_of(engine, line, {})
    notes += [
        f"${name} depends on a condition or a loop; planned with {_shown(value)!r}"
        for name, value in sorted(line.doubtful.items())
    ]
    return Started(engine, rest, environment, line.prefix, hidden, version, said_by, notes)


def _named(words: Sequence[str], i: int) -> str:
    """The engine that this word names, where that starts it."""
    word = words[i]
    if word.startswith("-"):
        return ""
    name = word.rpartition("/")[2]
    if package := PACKAGE.fullmatch(word):
        name = package["name"]
    engine = STARTS.get(name) or next(
        (e for start, e in STARTS.items() if "." in start and word.endswith(start)), ""
    )
    if engine and (name in SUBCOMMANDS or name == "trtllm-serve"):
        return engine if words[i + 1 : i + 2] == ["serve"] or name == "trtllm-serve" else ""
    return engine


def _of_image(image: str, known: bool = True) -> str:
    """The engine that an image starts by itself: of a known one, or of any that bears the engine's name."""
    name = image.partition("@")[0].partition(":")[0]
    if engine := next((engine for part, engine in IMAGES.items() if part in name), ""):
        return engine
    name = name.rpartition("/")[2]
    return (
        next((e for e in SUBCOMMANDS if e in name), "") if not known and not OTHER_IMAGES.search(name) else ""
    )


def _given_to_image(words: list[str]) -> tuple[str, list[str], list[str]] | None:
    """(engine, its words, notes) of a command that runs an image whose entry point is the engine."""
    if words[0] == "kubectl":
        return _kubectl(words)
    if "run" not in words:
        return None
    at = words.index("run")
    i = _behind_options(words, at + 1)
    if "compose" in words[:at]:
        engine = next((e for e in SUBCOMMANDS if i < len(words) and e in words[i]), "")
        return (
            (engine, words[i + 1 :], [])
            if engine and words[i + 1 : i + 2] and words[i + 1][0] == "-"
            else None
        )
    if i >= len(words) or not _of_image(words[i], known=False):
        i = next((k for k in range(at + 1, len(words)) if _image(words, k)), 0)
    if not i:
        return None
    rest = words[i + 1 :]
    if entry := _option(words[at:i], "entrypoint"):
        rest = [*entry.split(), *rest]
        k, engine = next(((k, e) for k in range(len(rest)) if (e := _named(rest, k))), (0, ""))
        return (engine, rest[k + 2 if rest[k + 1 : k + 2] == ["serve"] else k + 1 :], []) if engine else None
    if {"-c", "-lc"} & {*rest[:3]}:
        return None
    return _of_image(words[i], known=False), rest[1:] if rest[:1] == ["serve"] else rest, []


def _image(words: Sequence[str], i: int) -> bool:
    """Whether a word is an engine's image, and no option's value."""
    return bool(_of_image(words[i])) and words[i][0] != "-" and words[i - 1] not in TAKE_A_WORD


def _behind_options(words: Sequence[str], i: int) -> int:
    """Where the options of `run` end, by the usual ones that take a word."""
    while i < len(words) and words[i].startswith("-"):
        i += 2 if words[i] in TAKE_A_WORD else 1
    return i


def _kubectl(words: list[str]) -> tuple[str, list[str], list[str]] | None:
    """`kubectl run NAME --image=...`, `kubectl create deployment`: words behind `--`."""
    at = words.index("--") if "--" in words else len(words)
    engine = _of_image(_option(words[:at], "image"))
    deployment = "create" in words[:at] and ("deployment" in words[:at] or "deploy" in words[:at])
    if not engine or not (deployment or "run" in words[:at]):
        return None
    note = (
        f"kubectl {'create deployment' if deployment else 'run --command'} takes what stands behind -- as the command,"
        " in place of the image's own: it starts with the engine's name, or the pod does not start"
    )
    replaced = deployment or "--command" in words[:at] or "--command=true" in words[:at]
    return engine, words[at + 1 :], [note] if replaced and at < len(words) else []


def _option(words: Sequence[str], name: str) -> str:
    """The value of `--name`, or empty."""
    for i, word in enumerate(words):
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
        if word == f"--{name}" and i + 1 < len(words):
            return words[i + 1]
    return ""


_PAIR = re.compile(r"([A-Za-z_]\w*)=(?!=)(.*)", re.DOTALL)


def _environment_of(line: Simple, at: int | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """What the engine gets of variables, and those that do not reach it: a container has its own."""
    words = line.words if at is None else line.words[:at]
    if line.image:
        return dict(line.environment), {}
    is_container = (
        bool(words) and words[0] in (*RUNNERS, "kubectl") and "run" in words
    ) or "compose" in words
    if not is_container:
        pairs = (_PAIR.fullmatch(word) for word in words)
        return {**line.environment, **{pair[1]: pair[2] for pair in pairs if pair}}, dict(line.others)
    outside = {**line.others, **line.environment}
    inside: dict[str, str] = {}
    for before, word in zip(["", *words], words, strict=False):
        named = word if before in ("-e", "--env") else ""
        if told := re.match(r"--env=|-e(?=\w)", word):
            named = word[told.end() :]
        if pair := _PAIR.fullmatch(named):
            inside[pair[1]] = pair[2]
        elif named in outside:
            inside[named] = outside[named]
    return inside, {name: value for name, value in outside.items() if name not in inside}


def _versions(words: Sequence[str]) -> dict[str, str]:
    """Engine -> version, of packages that a command installs or runs."""
    found = {pair["name"]: pair["version"] for word in words if (pair := PACKAGE.match(word))}
    wheels = (re.search(r"/(vllm|sglang)-(\d+\.\d+(?:\.\w+)*)[+-]", word) for word in words)
    return found | {wheel[1]: wheel[2] for wheel in wheels if wheel}


def _version_of(engine: str, line: Simple, said: Mapping[str, str]) -> tuple[str, str]:
    """The version that is started, and what says it."""
    if version := next((v for word in (line.image, *line.words) if (v := image_version(word, engine))), ""):
        return version, "the image's version"
    if version := _versions(line.words).get(engine, ""):
        return version, "the version that the command names"
    return (said[engine], "the version that is installed") if engine in said else ("", "")


def image_version(word: str, engine: str = "vllm") -> str:
    """Version in the tag of an engine's image, as in vllm/vllm-openai:v0.19.0; empty for others.

    >>> image_version("vllm/vllm-openai:v0.19.1-x86_64"), image_version("lmsysorg/sglang:v0.5.5-cu129", "sglang")
    ('0.19.1', '0.5.5')
    """
    name = {
        "vllm": r"vllm(?:-openai)?(?:-rocm)?",
        "sglang": "sglang",
        "tensorrt-llm": r"tensorrt-llm/release",
    }[engine]
    found = re.search(rf"(?:^|/){name}:(?:\S*[_-]{engine}[_-]?)?v?(\d+\.\d+(?:\.\d+)?)", word)
    return found[1] if found else ""


def _shown(word: str) -> str:
    return word.replace(UNSTATED, "")[:60]
