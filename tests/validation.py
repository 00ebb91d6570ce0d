"""Sections of docs/validation.md that tests write: each between its own pair of markers, and checked when tests run.

`KVPLAN_WRITE_DOCS=1 pytest tests/memory/test_layout.py` rewrites the sections of that file's tests.
"""

from __future__ import annotations

import os
import re

from places import ROOT

PAGE = ROOT / "docs" / "validation.md"


def section(name: str, text: str) -> None:
    """Assert that section `name` of the page holds `text`, or write it there if asked to.

    Args:
        name: the marker, e.g. `layout` for `<!-- layout:begin -->` and `<!-- layout:end -->`.
        text: markdown, heading included.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    block = f"{begin}\n{text.strip()}\n{end}"
    page = PAGE.read_text() if PAGE.exists() else "# Validation\n"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if os.environ.get("KVPLAN_WRITE_DOCS"):
        page = pattern.sub(lambda _: block, page) if pattern.search(page) else f"{page.rstrip()}\n\n{block}\n"
        PAGE.write_text(page)
    found = pattern.search(page)
    assert found, f"docs/validation.md has no section {name}; run with KVPLAN_WRITE_DOCS=1"
    assert found.group() == block, f"section {name} is out of date; run with KVPLAN_WRITE_DOCS=1"
