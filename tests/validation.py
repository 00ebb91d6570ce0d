"""Sections of the docs that tests write: each between its own pair of markers, and checked when tests run.

`KVPLAN_WRITE_DOCS=1 pytest tests/memory/test_layout.py` rewrites the sections of that file's tests.
"""

from __future__ import annotations

import os
import re

from places import ROOT

DOCS = ROOT / "docs"
BACK = "What follows is written by a test; [docs/validation.md](../validation.md) says what it means.\n"


def section(name: str, text: str, page: str = "") -> None:
    """Assert that section `name` of a page holds `text`, or write it there if asked to.

    Args:
        name: the marker, e.g. `layout` for `<!-- layout:begin -->` and `<!-- layout:end -->`.
        text: markdown, heading included.
        page: a file of docs/; by default the section's own, `validation/layout.md`.
    """
    path = DOCS / (page or f"validation/{name}.md")
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    block = f"{begin}\n{text.strip()}\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if os.environ.get("KVPLAN_WRITE_DOCS"):
        before = path.read_text() if path.exists() else BACK
        known = pattern.search(before)
        path.write_text(pattern.sub(lambda _: block, before) if known else f"{before.rstrip()}\n\n{block}\n")
    found = pattern.search(path.read_text()) if path.exists() else None
    assert found, f"{path.relative_to(ROOT)} has no section {name}; run with KVPLAN_WRITE_DOCS=1"
    assert found.group() == block, f"section {name} is out of date; run with KVPLAN_WRITE_DOCS=1"
