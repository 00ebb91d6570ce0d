"""The wheel carries what a plan needs: catalog, scenarios, profiles, app; found from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked where nothing of the checkout is in sight."""
    pytest.importorskip(
        "hatchling", reason="building a wheel here needs hatchling; `pip install .` brings its own"
    )
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return site


def run(site: Path, cwd: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_estimate_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """A bundled model, a bundled card, from another folder."""
    out = run(installed, tmp_path, "-m", "kvplan", "estimate", "Qwen/Qwen3-8B", "--gpu", "l40s")
    assert "GPU KV cache size" in out


def test_data_is_found_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    """Scenarios, profiles and the app lie inside the package."""
    code = "from kvplan.ground.files import *; print(scenarios_dir(), profiles_dir(), catalog_dir())"
    for folder in run(installed, tmp_path, "-c", code).split():
        assert Path(folder).is_relative_to(installed)
        assert any(Path(folder).iterdir())
    assert (installed / "kvplan" / "_data" / "app.py").is_file()
