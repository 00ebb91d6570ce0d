"""`--kv-transfer-config`: the JSON that tells vLLM of a KV connector, as far as its own offloading is planned."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from kvplan.ground.config import Config, json_object, read_object
from kvplan.ground.units import GiB


class TierFlags(Config):
    """One entry of `secondary_tiers`."""

    type: str
    """fs, vLLM's file system tier, is planned; obj, p2p, kvcr, example and tiers of one's own are not."""
    root_dir: str = ""
    """Where files lie; has no effect here."""
    n_read_threads: int = Field(16, ge=1, le=1024)
    """Threads that prefer loads."""
    n_write_threads: int = Field(16, ge=1, le=1024)
    """Threads that prefer stores."""
    locality: Literal["LOCAL", "REMOTE"] | None = None
    """REMOTE: a file system over the network."""
    enable_kv_events: bool = False
    """Has no effect here."""

    @field_validator("type")
    @classmethod
    def _is_planned(cls, kind: str) -> str:
        if kind != "fs":
            raise ValueError(
                f"secondary tier {kind[:40]!r}: of vLLM's tiers below host memory fs is planned; obj, p2p, kvcr,"
                " example and others are not"
            )
        return kind


class OffloadingFlags(Config):
    """`kv_connector_extra_config` of vLLM's OffloadingConnector."""

    cpu_bytes_to_use: Annotated[float, Field(gt=0, le=1e15)] | None = None
    """Bytes of host memory, all ranks of an engine together; --kv-offloading-size comes before it."""
    spec_name: Literal["CPUOffloadingSpec", "TieringOffloadingSpec"] = "CPUOffloadingSpec"
    """TieringOffloadingSpec reads `secondary_tiers`."""
    blocks_per_chunk: int = Field(1, ge=1, le=4096)
    """GPU blocks stored and loaded together."""
    eviction_policy: Literal["lru", "arc"] = "lru"
    """Which chunk leaves a full tier."""
    offload_prompt_only: bool = True
    """Store prompts alone."""
    store_threshold: int = Field(0, ge=0, le=10**6)
    """Store a chunk from this offer on."""
    max_tracker_size: int = Field(64_000, ge=1, le=10**9)
    """Chunks whose offers are counted."""
    secondary_tiers: tuple[TierFlags, ...] = ()
    """Tiers below host memory."""


def connector_of(value: Any) -> str | None:
    """The connector that the flag's value names, if it can be read."""
    try:
        return json_object(value).get("kv_connector")
    except ValueError:
        return None


def kv_transfer_text(value: Any) -> str | None:
    """The flag's value as vLLM takes it, checked, in one spelling; raises ValueError for what is not planned.

    >>> kv_transfer_text('{"kv_connector":"OffloadingConnector", "kv_role":"kv_both"}')
    '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}'
    """
    if value is None:
        return None
    told = json_object(value)
    connector = told.get("kv_connector")
    if connector not in (None, "OffloadingConnector"):
        raise ValueError(
            f"connector {str(connector)[:60]}: of vLLM's, OffloadingConnector is planned; for prefill and decode apart"
            " see `disaggregation` of a scenario"
        )
    if connector and told.get("kv_role") != "kv_both":
        raise ValueError(f"kv_role {told.get('kv_role')!r}: vLLM's OffloadingConnector has kv_both")
    extra = told.get("kv_connector_extra_config", {})
    if isinstance(extra, dict) and "block_size" in extra:
        raise ValueError("block_size of a chunk, in tokens: state blocks_per_chunk, in blocks")
    read_object(OffloadingFlags, extra)
    return json.dumps(told)


def offloading_flags(text: str | None) -> OffloadingFlags:
    """What the flag says of offloading; the defaults without it."""
    return (
        OffloadingFlags(**json.loads(text).get("kv_connector_extra_config", {}))
        if text
        else OffloadingFlags.model_construct()
    )


def offloading_gib(size: float | None, text: str | None) -> float | None:
    """GiB of host memory by both flags, None = no tier: --kv-offloading-size, else `cpu_bytes_to_use`.

    >>> offloading_gib(None, kv_transfer_text({"kv_connector": "OffloadingConnector", "kv_role": "kv_both",
    ...                                        "kv_connector_extra_config": {"cpu_bytes_to_use": 2**33}}))
    8.0
    """
    if size is not None or text is None or json.loads(text).get("kv_connector") is None:
        return size
    told = offloading_flags(text).cpu_bytes_to_use
    return None if told is None else told / GiB
