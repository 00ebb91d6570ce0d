"""Files of measured surfaces: written whole, read back, named when damaged."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from kvplan.ground.errors import KvplanError
from kvplan.profiles.profile import bundled_profiles, load_profile, surfaces_path, write_profile
from kvplan.profiles.surface_file import MOST_BYTES, packed, read_surfaces

A100 = next(p for p in bundled_profiles() if p.name == "a100-80gb-vllm")


def test_a_profile_is_written_with_its_surfaces_and_read_back(tmp_path: Path) -> None:
    """Two files and nothing else; the surfaces are the same bytes again."""
    path = tmp_path / "mine.json"
    write_profile(A100, path)
    assert {p.name for p in tmp_path.iterdir()} == {"mine.json", "mine.surfaces.xz"}
    again = load_profile(path)
    assert again.timing is not None
    assert again.model_dump() == A100.model_dump()
    assert packed(again.timing.surfaces) == surfaces_path(path).read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"no xz", lzma.compress(b"[1]\n"), lzma.compress(b'{"gemm.bf16": 1}\n'),
        lzma.compress(b'{"gemm.bf16": {}}\n'),
        lzma.compress(b'{"gemm.bf16": {"ratio": [99, 99]}}\n'), lzma.compress(b'{"a": {"ratio": [1e999]}}\n'),
        lzma.compress(bytes(2 * MOST_BYTES), preset=0),  # every worker makes it, the default takes ten times as long
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    """Not xz, no surfaces in it, or more than a file of surfaces can hold."""
    path = tmp_path / "x.surfaces.xz"
    path.write_bytes(content)
    with pytest.raises(KvplanError, match="not a file of measured surfaces"):
        read_surfaces(path)


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    """A notebook or app that lives on after another fit sees the new one."""
    assert A100.timing is not None
    path = tmp_path / "x.surfaces.xz"
    path.write_bytes(packed(A100.timing.surfaces))
    assert "gemm.bf16" in read_surfaces(path)
    path.write_bytes(packed({}))
    assert read_surfaces(path) == {}
