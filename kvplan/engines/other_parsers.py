"""The parsers of SGLang and of trtllm-serve: their flags, spellings and kinds of values, what they refuse."""

from __future__ import annotations

import json
from functools import cache
from typing import NamedTuple

from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import catalog_dir

PARSED = {"sglang": "SGLang 0.5.23", "tensorrt-llm": "TensorRT-LLM 1.3"}
"""Whose parsers these are."""


class OtherFlag(NamedTuple):
    """A flag as it is written first, and the kind of its value: switch, value, list or maybe."""

    name: str
    kind: str
    negated: bool = False


@cache
def _spellings(engine: str) -> dict[str, OtherFlag]:
    """Every spelling, without dashes before it -> the flag."""
    told: dict[str, str] = json.loads((catalog_dir() / "other_flags.json").read_text())[engine]
    found: dict[str, OtherFlag] = {}
    for name, kinds in told.items():
        kind, *others = kinds.split()
        for spelling in (name, *(other.lstrip("-") for other in others if other != "no")):
            found[spelling] = OtherFlag(name, kind)
        if "no" in others:
            found[f"no-{name}"] = OtherFlag(name, kind, negated=True)
    return found


def other_flag(engine: str, name: str) -> OtherFlag:
    """The flag that a spelling is, or alone begins: argparse lets SGLang's be cut short, click does not.

    Raises KvplanError for what the parser refuses.

    >>> other_flag("sglang", "tp").name, other_flag("sglang", "tensor-parallel-size").name
    ('tp-size', 'tp-size')
    """
    spelled = _spellings(engine)
    said = name.replace("-", "_") if engine == "tensorrt-llm" else name
    if said in spelled:
        return spelled[said]
    begun = sorted(
        {flag for spelling, flag in spelled.items() if spelling.startswith(said)}
        if said and engine == "sglang"
        else ()
    )
    if len({flag.name for flag in begun}) == 1:
        return begun[0]
    if begun:
        raise KvplanError(
            f"--{name[:60]}: ambiguous, could be {', '.join(f'--{flag.name}' for flag in begun[:4])}"
        )
    close = did_you_mean(said[:60], spelled, limit=1)
    raise KvplanError(f"--{name[:60]}: {PARSED[engine]} has no such flag{close}")
