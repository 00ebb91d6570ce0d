"""`--limit-mm-per-prompt`: images, videos and sounds that a prompt may have, and sizes of those that start-up profiles;
0 keeps a kind out of that run. `--mm-processor-kwargs`: what their processor is told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from kvplan.ground.config import json_object
from kvplan.ground.errors import KvplanError

UNLIMITED = 999
"""What vLLM 0.32 takes for a kind that nobody names (`config/multimodal.py`)."""


SIZES = {"image": ("width", "height"), "video": ("num_frames", "width", "height"), "audio": ("length",)}
"""What may be stated of a kind beside its count (vLLM 0.32 `config/multimodal.py: VideoDummyOptions` and others)."""


def mm_limits_text(value: Any) -> str | None:
    """The flag's value as vLLM takes it, in one spelling; raises ValueError for another.

    >>> mm_limits_text('{"video": 0, "image": {"count": 2, "width": 512}}')
    '{"image": {"count": 2, "width": 512}, "video": 0}'
    """
    if value is None:
        return None
    told = {str(kind): _limit(str(kind), limit) for kind, limit in json_object(value).items()}
    return json.dumps(told, sort_keys=True) if told else None


def _limit(kind: str, limit: Any) -> Any:
    """A count alone, or with sizes."""
    told = dict(limit) if isinstance(limit, Mapping) else {"count": limit}
    count, sizes = told.pop("count", UNLIMITED), {key: n for key, n in told.items() if n is not None}
    if type(count) is not int or not 0 <= count <= 10**6:
        raise ValueError("must have a number of items, 0 to 1,000,000, for each kind")
    for key, size in sizes.items():
        if key not in SIZES.get(kind, ()):
            known = ", ".join(("count", *SIZES.get(kind, ())))
            raise ValueError(f"{kind} has no {key[:40]!r}; vLLM takes {known}")
        if type(size) is not int or not 1 <= size <= 10**9:
            raise ValueError(f"{kind}: {key} must be a whole number above 0")
    return {"count": count, **sizes} if sizes else count


def mm_limit(text: str | None, kind: str) -> int:
    """Items of a kind that a prompt may have.

    >>> mm_limit('{"video": 0}', "video"), mm_limit(None, "image")
    (0, 999)
    """
    told = json.loads(text).get(kind, UNLIMITED) if text else UNLIMITED
    return int(told["count"] if isinstance(told, dict) else told)


def mm_sizes(text: str | None, kind: str) -> dict[str, int]:
    """Sizes of the item of a kind that start-up profiles, as stated.

    >>> mm_sizes('{"image": {"count": 2, "width": 512}}', "image")
    {'width': 512}
    """
    told = json.loads(text).get(kind) if text else None
    return {key: n for key, n in told.items() if key != "count"} if isinstance(told, dict) else {}


def processor_text(value: Any) -> str | None:
    """--mm-processor-kwargs in one spelling; raises ValueError for what is no object."""
    if value is None:
        return None
    told = dict(json_object(value))
    return json.dumps(told, sort_keys=True) if told else None


PRUNING = ("evs", "vidcom2")
"""Methods of --video-pruning-method."""


def check_pruning(flag: str, value: Any) -> None:
    """Refuse what vLLM refuses of the flags that prune videos' tokens.

    They change nothing that start-up takes: vLLM 0.32 profiles items unpruned, and lengths of requests are stated.
    """
    if flag == "video-pruning-method" and value not in PRUNING:
        raise KvplanError(f"--{flag} {str(value)[:40]}: must be {' or '.join(PRUNING)}")
    if flag == "video-pruning-rate" and not _is_share(value):
        raise KvplanError(f"--{flag} {str(value)[:40]}: must be a share in [0, 1)")


def _is_share(value: Any) -> bool:
    try:
        return 0 <= float(value) < 1
    except (TypeError, ValueError):
        return str(value).casefold() == "none"


def unused_towers(text: str | None, towers: Iterable[Iterable[str]]) -> list[tuple[str, ...]]:
    """Towers, each as the kinds it is for, whose kinds no prompt may have: vLLM does not load them.

    Source: vLLM 0.32 `model_executor/models/interfaces.py: _mark_tower_model`.

    >>> unused_towers('{"image": 0, "video": 0}', [("image", "video"), ("audio",)])
    [('image', 'video')]
    """
    return [tuple(kinds) for kinds in towers if not any(mm_limit(text, kind) for kind in kinds)]
