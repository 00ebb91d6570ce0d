"""Which engines have a twin, of which versions, and what each version's was held to."""

from __future__ import annotations

from typing import Literal, NamedTuple

from kvplan.ground.errors import KvplanError
from kvplan.schedulers.vllm.rules import CHECKED, MIRRORED, write_version

EngineName = Literal["vllm", "sglang"]
ENGINES: tuple[EngineName, ...] = ("vllm", "sglang")


class Twin(NamedTuple):
    """The twin of one version."""

    engine: EngineName
    version: str
    mirrors: str
    """As a log's header names it."""
    held_to: str
    """What was compared with the engine's own logs, and was equal."""


TWINS = (
    *(Twin("vllm", write_version(v), f"vLLM {write_version(v)}.0", what) for v, what in CHECKED.items()),
    Twin("sglang", "0.5.23", "SGLang 0.5.23", "every feature of the twin"),
)
DEFAULT = {"vllm": MIRRORED, "sglang": "0.5.23"}


def find_twin(engine: EngineName, version: str | None) -> Twin:
    """Find the twin of a version; None = the engine's default. Raises KvplanError for a version without one."""
    wanted = version or DEFAULT[engine]
    versions = [twin.version for twin in TWINS if twin.engine == engine]
    for twin in TWINS:
        if twin.engine == engine and twin.version == wanted:
            return twin
    said = f"{versions[0]} to {versions[-1]}" if len(versions) > 1 else versions[0]
    raise KvplanError(f"--engine-version {wanted}: {engine} has a twin of {said}")


def describe_twins() -> list[str]:
    """List the twins, a line each."""
    return [f"{twin.mirrors:<16}{twin.held_to}" for twin in TWINS]
