"""Where the bundled files live: beside the package in a checkout, inside it after installation."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
_INSTALLED = PACKAGE / "_data"


def _dir(installed: str, checkout: str) -> Path:
    inside = _INSTALLED / installed
    return inside if inside.is_dir() else PACKAGE.parent / checkout


def catalog_dir() -> Path:
    """Model configs and the GPU table."""
    return PACKAGE / "catalog"


def scenarios_dir() -> Path:
    """The runnable scenarios, `*.yaml`."""
    return _dir("scenarios", "scenarios")


def profiles_dir() -> Path:
    """The fitted profiles, `*.json`."""
    return _dir("profiles", "calibration/profiles")


def measurements_dir() -> Path:
    """Raw measurements, `*.jsonl`."""
    return _dir("measurements", "calibration/measurements")
