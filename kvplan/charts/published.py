"""What others measured of a model on a card, to stand beside predictions: `catalog/published_points.yaml`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import yaml

from kvplan.charts.drawing import Rows
from kvplan.ground.files import catalog_dir


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((catalog_dir() / "published_points.yaml").read_text())
    return found


def published_name() -> str:
    """Who measured what, for a legend."""
    return f"measured: {_table()['name']}"


def published_rows(deployed: Iterable[tuple[str, str]]) -> Rows:
    """Measured points of these (model, card) pairs, as rows of a chart; none where nobody published any.

    `per_user`: output tokens a second of one sequence, the mean over the batch; `per_gpu`: of one card.
    """
    asked = set(deployed)
    return [
        {
            "what": f"{row['num_gpus']} x {row['gpu']}, {row['weights']}, {batch:g} sequences",
            "per_user": tokens_per_s / batch,
            "per_gpu": tokens_per_s / row["num_gpus"],
            "state": published_name(),
            "source": f"{_table()['source']}, {_table()['licence']}",
        }
        for row in _table()["deployments"]
        if (row["model"], row["gpu"]) in asked
        for batch, tokens_per_s in row["points"]
    ]
