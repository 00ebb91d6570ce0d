"""Measured serving points of dense models: what one would have been told before renting the cards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.validate_step_time import known_model, point, sample

SAMPLE = (
    Path(__file__).resolve().parents[1].parent / "shared" / "truth" / "serving" / "aic_silicon_sample.csv"
)


def test_dense_models_on_real_cards() -> None:
    """TPOT of dense models on H100, H200 and B200, vLLM and TensorRT-LLM: 12 % median; every ninth point here.

    `docs/validation.md` has all points, the mixtures of experts and the worst ones.
    """
    if not SAMPLE.exists():
        pytest.skip(f"needs the measured points {SAMPLE}")
    rows = [row for row in sample(SAMPLE) if (model := known_model(row["model_path"])) and not model.is_moe]
    points = [p for p in map(point, rows[::9]) if p is not None]
    assert len(points) >= 40
    assert np.median([abs(p.tpot_error) for p in points]) <= 0.12
    assert abs(np.mean([p.tpot_error for p in points])) <= 0.12
