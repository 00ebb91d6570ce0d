"""`result.to_frame()`: pandas loads only where somebody asks for a frame, and is named where it is missing."""

from __future__ import annotations

from typing import Any

from kvplan.ground.errors import KvplanError


def make_frame(data: Any, columns: list[str] | None = None) -> Any:
    """`pandas.DataFrame(data)`. Raises KvplanError where pandas is missing."""
    try:
        import pandas as pd
    except ModuleNotFoundError:
        raise KvplanError(
            "frames need pandas: pip install 'kvplan[sweep]'; to_dict() needs nothing"
        ) from None
    return pd.DataFrame(data, columns=columns)
