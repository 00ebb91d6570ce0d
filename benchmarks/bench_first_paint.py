"""How long a newcomer looks at nothing: from opening the address to the verdict's words, in a real browser.

    python benchmarks/bench_first_paint.py --times 5

Starts `kvplan app`, has one visitor before, then opens it in Chromium: in a new one, whose cache is empty, and again in
the same one. Prints medians of the steps on the way, seconds since the address was opened, beside the CPU seconds of
server and browser until the verdict, which say more on a machine that does other things too. Needs chromium,
chromedriver and selenium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from load_app import Visitor, cpu_s, serve
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

GOAL_S = 1.5
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,900",
)  # fmt: skip
WATCH = """
window.seen = {};
const look = () => {
  const note = (name, met) => { if (met && !(name in seen)) seen[name] = performance.now() / 1e3; };
  note('title', document.querySelector('h1'));
  const told = document.querySelector('.st-key-verdict [data-testid="stAlert"]');
  note('verdict', told && told.innerText.length > 20);
  note('chart', document.querySelector('.vega-embed :is(svg, canvas)'));
  requestAnimationFrame(look);
};
requestAnimationFrame(look);
const Socket = window.WebSocket;
window.WebSocket = class extends Socket {
  constructor(...told) {
    super(...told);
    const note = (name) => { if (!(name in seen)) seen[name] = performance.now() / 1e3; };
    note('socket asked');
    this.addEventListener('open', () => note('socket open'));
    this.addEventListener('message', () => note('first message'));
  }
};
"""
STEPS = ("socket asked", "socket open", "first message", "title", "verdict", "chart")


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium with an empty cache."""
    options = webdriver.ChromeOptions()
    options.binary_location = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    )
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    try:
        yield driver
    finally:
        driver.quit()


def opened(driver: Any, address: str, server: int) -> dict[str, float]:
    """Seconds from opening the address to each step, and CPU seconds meanwhile."""
    driver.get("about:blank")
    chromium = driver.service.process.pid
    before = cpu_s(server), cpu_s(chromium)
    driver.get(address)
    until = time.monotonic() + 60
    seen = driver.execute_script("return window.seen")
    while "verdict" not in seen and time.monotonic() < until:
        time.sleep(0.02)
        seen = driver.execute_script("return window.seen")
    after = cpu_s(server), cpu_s(chromium)
    until = time.monotonic() + 15  # a busy machine is not waited for: the verdict is what counts
    while "chart" not in seen and time.monotonic() < until:
        time.sleep(0.1)
        seen = driver.execute_script("return window.seen")
    loaded = driver.execute_script(
        "const all = performance.getEntriesByType('resource').filter(e => !e.name.includes('/_stcore/'));"
        "return [all.length, all.reduce((sum, e) => sum + e.transferSize, 0)]"
    )
    return {
        **seen,
        "server CPU": after[0] - before[0],
        "browser CPU": after[1] - before[1],
        "files": float(loaded[0]),
        "MiB": loaded[1] / 2**20,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="kvplan-paint-") as folder:
        server, port = serve(folder)
        try:
            visitor = Visitor(port)
            visitor.open(tab="Estimate")
            visitor.follow(time.monotonic() + 60)
            visitor.leave()
            address = f"http://127.0.0.1:{port}/"
            new, again = [], []
            for _ in range(asked.times):
                with browser() as driver:
                    new.append(opened(driver, address, server.pid))
                    again.append(opened(driver, address, server.pid))
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(20)
    names = (*STEPS, "server CPU", "browser CPU", "files", "MiB")
    print(f"{'s, medians of ' + str(asked.times):<22}" + "".join(f"{name:>15}" for name in names))
    for label, found in (("empty cache", new), ("again", again)):
        row = [median(one.get(name, float("nan")) for one in found) for name in names]
        print(f"{label:<22}" + "".join(f"{value:>15.2f}" for value in row))
    print(f"goal: the verdict within {GOAL_S:g} s on a quiet machine")


if __name__ == "__main__":
    main()
