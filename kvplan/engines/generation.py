"""`--override-generation-config`: sampling parameters that requests get which leave them out."""

from __future__ import annotations

import json
from typing import Any

from kvplan.ground.config import json_object

NO_TOP_K, NO_TOP_P = (None, 0, -1), (None, 1, 1.0)
"""Values of top_k and top_p that leave no token out (vLLM's `SamplingParams`)."""


def generation_text(value: Any) -> str | None:
    """The flag's value in one spelling, None for an empty one; raises ValueError for what is no JSON object."""
    told = dict(json_object(value)) if value is not None else {}
    return json.dumps(told, sort_keys=True) if told else None


def leaves_tokens_out(text: str | None, otherwise: bool) -> bool:
    """Whether sampling looks for the top-k or top-p tokens; `otherwise` where the flag does not settle it.

    >>> leaves_tokens_out('{"top_k": 20}', False), leaves_tokens_out('{"top_k": -1, "top_p": 1.0}', True)
    (True, False)
    >>> leaves_tokens_out('{"top_k": -1}', True), leaves_tokens_out(None, True)
    (True, True)
    """
    told = json.loads(text) if text else {}
    if told.get("top_k") not in NO_TOP_K or told.get("top_p") not in NO_TOP_P:
        return True
    return otherwise and not {"top_k", "top_p"} <= told.keys()
