"""Pictures of the app in every state, at four widths, in light and dark, and what is wrong with them.

    python tests/look_at_app.py FOLDER [--only REGEX]

Prints what the scripts beside the browser test find: words cut, out of their box or too faint, a page too wide.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from app_states import STATES, State
from browser_driver import Page, browser, served

WIDTHS = (390, 768, 1280, 1920)
HIGHEST = 9000
"""Pixels of a picture; what comes below is not seen."""


def main() -> int:
    """Look at all; 1 if anything is found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="states whose name this regular expression finds")
    told = parser.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    faults = 0
    with (
        TemporaryDirectory(prefix="kvplan-looks-") as folder,
        served(Path(folder)) as base,
        browser(base, Path(folder)) as page,
    ):
        for name, state in STATES.items():
            if re.search(told.only, name):
                begun = time.monotonic()
                found = look(page, name, state, told.folder)
                print(f"{name}: {time.monotonic() - begun:.0f} s", *found, sep="\n  ", flush=True)
                faults += len(found)
    return 1 if faults else 0


def look(page: Page, name: str, state: State, to: Path) -> list[str]:
    """Take a state's pictures; what is wrong with them."""
    found: list[str] = []
    page.look(1280)
    page.alone()
    try:
        page.open(**state.link)
        page.first_answer()
        state.reach(page)
    except AssertionError as error:
        found.append(f"not reached: {error}")
    for width in WIDTHS:
        page.grow(width, HIGHEST)
        found += [f"{width}: {one}" for one in page.clipped()]
        for dark in (False, True):
            page.light(dark)
            picture = page.driver.get_screenshot_as_png()
            (to / f"{name.replace(' ', '-')}-{width}{'-dark' if dark else ''}.png").write_bytes(picture)
            if width in (390, 1280):
                found += [f"{width}{' dark' if dark else ''}: {one}" for one in page.unreadable()]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
