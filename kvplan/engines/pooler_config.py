"""`--pooler-config`: vLLM's JSON of how an engine embeds or scores, with the keys and checks of its 0.32.

Source: `config/pooler.py`.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Literal

from pydantic import Field

from kvplan.ground.config import Config, read_object

Runner = Literal["auto", "generate", "pooling", "draft"]
Convert = Literal["auto", "none", "embed", "classify"]
Task = Literal["embed", "classify", "token_embed", "token_classify", "plugin", "embed&token_classify"]
Sequences = Literal["CLS", "LAST", "MEAN"]
Tokens = Literal["ALL", "STEP"]


class PoolerConfig(Config):
    """`--pooler-config` with vLLM's keys; those without a docstring say nothing of memory or scheduling."""

    task: Task | None = None
    pooling_type: Sequences | Tokens | None = None
    """As one of the next two."""
    seq_pooling_type: Sequences | None = None
    """The token or tokens that stand for a sequence; MEAN and CLS need whole prompts."""
    tok_pooling_type: Tokens | None = None
    """Which tokens are given; STEP needs whole prompts."""
    use_activation: bool | None = None
    enable_flash_late_interaction: bool = True
    dimensions: int | None = Field(None, ge=1)
    enable_chunked_processing: bool = False
    max_embed_len: int | None = Field(None, ge=1)
    logit_mean: float | None = None
    logit_sigma: float | None = None
    step_tag_id: int | None = None
    returned_token_ids: tuple[int, ...] | None = None


def pooler_text(value: Any) -> str | None:
    """`--pooler-config` as vLLM takes it, checked, in one spelling; raises ValueError for what vLLM refuses.

    >>> pooler_text('{"pooling_type": "STEP", "step_tag_id": 123}')
    '{"pooling_type": "STEP", "step_tag_id": 123}'
    """
    if value is None:
        return None
    told = read_object(PoolerConfig, value)
    if told.pooling_type and (told.seq_pooling_type or told.tok_pooling_type):
        raise ValueError("pooling_type and seq_pooling_type or tok_pooling_type: state one")
    if told.logit_sigma == 0:
        raise ValueError("logit_sigma cannot be 0")
    kept = told.model_dump(mode="json", exclude_unset=True)
    return json.dumps(kept, sort_keys=True) if kept else None


@cache
def pooler_config(text: str | None) -> PoolerConfig:
    """What the flag says; the defaults without it."""
    return PoolerConfig(**json.loads(text)) if text else PoolerConfig.model_construct()
