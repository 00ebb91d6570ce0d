"""`--engram-config`: where tables of n-grams lie, as vLLM 0.32 checks it (`config/engram.py`)."""

from __future__ import annotations

import json
from typing import Any

from kvplan.ground.config import Config, read_object


class EngramConfig(Config):
    """vLLM's config of the tables."""

    cpu_offload: bool = True
    """In pinned host memory, looked up over the link."""
    embedding_across_dp: bool = False
    """Shared out over data-parallel ranks too."""
    dp_shared_memory: bool | None = None
    """One copy in host memory for replicas on one machine."""
    use_thp: bool = False


def engram_text(value: Any) -> str | None:
    """The flag's value as vLLM takes it, in one spelling; raises ValueError for another.

    >>> engram_text('{"cpu_offload": false, "use_thp": false}')
    '{"cpu_offload": false}'
    """
    if value is None:
        return None
    found = read_object(EngramConfig, value)
    if found.dp_shared_memory and not found.cpu_offload:
        raise ValueError("dp_shared_memory requires cpu_offload true")
    if found.use_thp and (not found.cpu_offload or found.dp_shared_memory):
        raise ValueError("use_thp requires cpu_offload true and dp_shared_memory false")
    return json.dumps(found.model_dump(exclude_defaults=True), sort_keys=True)


def engram_config(text: str | None) -> EngramConfig:
    """The config that a flag's value means."""
    return EngramConfig(**json.loads(text)) if text else EngramConfig.model_construct()
