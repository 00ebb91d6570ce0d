"""`--ec-transfer-config`: an encoder in an engine of its own and the engines that take what it encodes, as vLLM 0.32
reads it.

A producer that is no consumer loads the encoder alone and has no KV; consumers keep the whole model. What passes
between them lies in buffers of the connector: Mooncake's consumers register one on each GPU before start-up profiles.
Source: `config/ec_transfer.py`, `distributed/ec_transfer/ec_connector/factory.py`, `mooncake/config.py`,
`mooncake/worker.py: start_services`, `cpu/common.py`.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Literal

from pydantic import Field

from kvplan.ground.config import Config, json_object, read_object

CONNECTORS = ("ECExampleConnector", "ECCPUConnector", "ECMooncakeConnector")
"""vLLM's own: files, host memory of one machine, the network."""


class EcTransfer(Config):
    """vLLM's keys."""

    ec_connector: str | None = None
    """Who carries embeddings."""
    engine_id: str | None = None
    ec_buffer_device: str | None = "cuda"
    """Where Mooncake's consumers receive: cuda or cpu."""
    ec_buffer_size: float = Field(1e9, ge=0, le=1e15)
    """Bytes of that buffer."""
    ec_role: Literal["ec_producer", "ec_consumer", "ec_both"] | None = None
    """Encodes for others, takes what others encoded, or both."""
    ec_ip: str = "127.0.0.1"
    ec_port: int = 14579
    ec_connector_extra_config: dict[str, Any] = Field(default_factory=dict)
    """What the connector itself reads."""
    ec_connector_module_path: str | None = None
    """Where code of one's own lies."""

    @property
    def encodes_only(self) -> bool:
        """Whether the engine has no language model."""
        return self.ec_connector is not None and self.ec_role == "ec_producer"

    @property
    def buffer_bytes(self) -> int:
        """Of each GPU of the first pipeline stage, taken before start-up profiles."""
        receives = self.ec_connector == "ECMooncakeConnector" and self.ec_role in ("ec_consumer", "ec_both")
        on_gpu = (self.ec_buffer_device or "cuda").lower().startswith("cuda")
        return int(self.ec_buffer_size) if receives and on_gpu else 0


def own_connector(value: Any) -> str | None:
    """The connector that the flag's value names, where it is code of one's own."""
    try:
        told = json_object(value)
    except ValueError:
        return None
    named = told.get("ec_connector")
    own = named is not None and named not in CONNECTORS and told.get("ec_connector_module_path") is not None
    return str(named) if own else None


def ec_transfer_text(value: Any) -> str | None:
    """The flag's value as vLLM takes it, checked, in one spelling; raises ValueError for what it refuses.

    >>> ec_transfer_text('{"ec_role":"ec_consumer", "ec_connector":"ECMooncakeConnector"}')
    '{"ec_connector": "ECMooncakeConnector", "ec_role": "ec_consumer"}'
    """
    if value is None:
        return None
    found = read_object(EcTransfer, value)
    named, known = found.ec_connector, ", ".join(CONNECTORS)
    if named is None:
        raise ValueError(f"names no ec_connector; vLLM has {known}")
    if named not in CONNECTORS:
        own = (
            "code of one's own, which is not planned" if found.ec_connector_module_path else "none of vLLM's"
        )
        raise ValueError(f"ec_connector {named[:40]} is {own}; it has {known}")
    if found.ec_role is None:
        raise ValueError("states no ec_role; it is ec_producer, ec_consumer or ec_both")
    _check_buffers(found)
    return json.dumps(found.model_dump(exclude_unset=True), sort_keys=True)


def _check_buffers(told: EcTransfer) -> None:
    extra = told.ec_connector_extra_config
    if told.ec_connector == "ECCPUConnector" and not extra.get("ec_cpu_bytes"):
        raise ValueError("ec_cpu_bytes must be specified in ec_connector_extra_config")
    if told.ec_connector != "ECMooncakeConnector":
        return
    if told.ec_buffer_size < 1 or not float(told.ec_buffer_size).is_integer():
        raise ValueError("ECMooncakeConnector requires ec_buffer_size to be a positive integer")
    if extra.get("cross_encoder_cache") and not told.encodes_only:
        raise ValueError("cross_encoder_cache requires an encoder-only producer, ec_role ec_producer")


@cache
def ec_transfer(text: str | None) -> EcTransfer:
    """What the flag says; no transfer without it."""
    return EcTransfer(**json.loads(text)) if text else EcTransfer.model_construct()
