"""`--limit-mm-per-prompt`: images, videos and sounds that a prompt may have; 0 keeps a kind out of the profile run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from kvplan.ground.config import json_object

UNLIMITED = 999
"""What vLLM 0.32 takes for a kind that nobody names (`config/multimodal.py`)."""


def mm_limits_text(value: Any) -> str | None:
    """The flag's value as vLLM takes it, counts alone, in one spelling; raises ValueError for another.

    >>> mm_limits_text('{"video": 0, "image": {"count": 2, "width": 512}}')
    '{"image": 2, "video": 0}'
    """
    if value is None:
        return None
    counts = {str(kind): _count(limit) for kind, limit in json_object(value).items()}
    if any(type(count) is not int or not 0 <= count <= 10**6 for count in counts.values()):
        raise ValueError("must have a number of items, 0 to 1,000,000, for each kind")
    return json.dumps(counts, sort_keys=True) if counts else None


def _count(limit: Any) -> Any:
    return limit.get("count", UNLIMITED) if isinstance(limit, Mapping) else limit


def mm_limit(text: str | None, kind: str) -> int:
    """Items of a kind that a prompt may have.

    >>> mm_limit('{"video": 0}', "video"), mm_limit(None, "image")
    (0, 999)
    """
    told = json.loads(text).get(kind, UNLIMITED) if text else UNLIMITED
    return int(told)


def unused_towers(text: str | None, towers: Iterable[Iterable[str]]) -> list[tuple[str, ...]]:
    """Towers, each as the kinds it is for, whose kinds no prompt may have: vLLM does not load them.

    Source: vLLM 0.32 `model_executor/models/interfaces.py: _mark_tower_model`.

    >>> unused_towers('{"image": 0, "video": 0}', [("image", "video"), ("audio",)])
    [('image', 'video')]
    """
    return [tuple(kinds) for kinds in towers if not any(mm_limit(text, kind) for kind in kinds)]
