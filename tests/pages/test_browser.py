"""The app in a real browser: what a person sees is what the command line prints. Needs chromium and chromedriver.

With KVPLAN_PICTURES=folder the pictures of the README are written there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from places import ROOT

pytest.importorskip("selenium", reason="the browser test needs selenium (the dev extra)")
pytest.importorskip("streamlit")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from kvplan.cli.main import run as cli
from kvplan.pages.simulation_tab import shown_ms

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no chromium and chromedriver here; `make test` installs them where it can",
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
TABS = ("Estimate", "Simulate", "Strategies", "Recommend", "Calibration")
MAX_PICTURE_BYTES = 200_000


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The app, served as `make app` serves it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = ["run", "app.py", f"--server.port={port}", "--server.address=127.0.0.1", "--server.headless=true"]
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    base = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: _answers(f"{base}/_stcore/health"), "the server does not answer", 60)
        yield base
    finally:
        server.terminate()
        server.wait(20)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _wait(met: Callable[[], Any], complaint: str, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = met()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(complaint)


class Page:
    """A tab of the browser with the app in it."""

    def __init__(self, driver: Any, base: str, downloads: Path) -> None:
        self.driver, self.base, self.downloads = driver, base, downloads

    def open(self, **inputs: object) -> None:
        """Open a link."""
        self.driver.get(f"{self.base}/?{urlencode(inputs)}")
        _wait(lambda: self.all("h1"), "no title")
        self.settle()

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def settle(self) -> None:
        """Wait until nothing runs and all parts have come; a page that is calm shows no exception."""
        busy = ", ".join(
            (
                '[data-testid="stStatusWidget"]',
                '[data-testid="stSkeleton"]',
                '[data-testid="stSpinner"]',
                '[data-stale="true"]',
            )
        )
        calm = 0

        def quiet() -> bool:
            nonlocal calm
            calm = 0 if self.all(busy) else calm + 1
            return calm >= 4

        _wait(quiet, "the page does not come to rest", 60)
        assert not self.all('[data-testid="stException"]')

    def look(self, width: int, height: int = 900, dark: bool = False) -> None:
        """A window of this size, in light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def choose(self, key: str, value: str) -> None:
        """Type a choice into a select box."""
        box = _wait(lambda: self.all(f".st-key-{key} input"), f"no input {key}")[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
        box.click()
        box.send_keys(value)
        _wait(lambda: self.all('[role="option"]'), "no options")
        box.send_keys(Keys.ENTER)
        time.sleep(0.3)
        self.settle()

    def press(self, key: str) -> None:
        """Press a button."""
        button = _wait(lambda: self.all(f".st-key-{key} button"), f"no button {key}")[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        time.sleep(0.3)
        self.settle()

    def metrics(self) -> dict[str, str]:
        found = {}
        for metric in self.all('[data-testid="stMetric"]'):
            if metric.is_displayed():
                label = metric.find_element(By.CSS_SELECTOR, '[data-testid="stMetricLabel"]').text
                found[label] = metric.find_element(By.CSS_SELECTOR, '[data-testid="stMetricValue"]').text
        return found

    def download(self, key: str, name: str) -> str:
        """Press a download button; return what came."""
        path = self.downloads / name
        path.unlink(missing_ok=True)
        for _ in range(3):  # a click is lost where the page is just being drawn anew
            self.press(key)
            try:
                _wait(path.is_file, f"{name} was not downloaded", 20)
            except AssertionError:
                continue
            return path.read_text()
        raise AssertionError(f"{name} was not downloaded")


@pytest.fixture(scope="module")
def page(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    allowed = {"behavior": "allow", "downloadPath": str(downloads)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
    found = Page(driver, address, downloads)
    found.look(1280)
    yield found
    driver.quit()


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints."""

    def of(*words: str) -> str:
        capsys.readouterr()
        cli(list(words))
        return capsys.readouterr().out

    return of


def test_a_plan_as_seen_and_reopened_from_its_link(page: Page, printed: Callable[..., str]) -> None:
    """Change model and card by hand: the figures are the command's, and the address reopens the same plan."""
    page.open()
    page.choose("model", "Qwen/QwQ-32B")
    page.choose("gpu", "h200")
    seen = page.metrics()
    lengths = ["--input-len", "512", "--output-len", "16384", "--num-samples", "32"]
    document = json.loads(printed("estimate", "Qwen/QwQ-32B", "--gpu", "h200", *lengths, "--json"))
    assert seen["GPU KV cache size"] == f"{int(document['kv']['cache_tokens']):,} tokens"
    assert seen["Traces at once"] == f"{document['traces']['at_once']:,}"
    assert seen["KV per token"] == f"{document['kv']['bytes_per_token'] / 1024:,.1f} KiB"
    command = page.all('[data-testid="stCode"]')[0].text.strip()
    assert command == document["serve_command"]
    link = page.driver.current_url
    assert "QwQ-32B" in link
    assert "h200" in link
    page.driver.get("about:blank")
    page.driver.get(link)
    _wait(lambda: page.all('[data-testid="stMetric"]'), "no figures")
    page.settle()
    assert page.metrics() == seen


def test_a_run_as_seen_and_taken_away(page: Page, printed: Callable[..., str]) -> None:
    """The figures are the command's; the block owners at two times are the exported trace's; the scenario file is the
    one that the command dumps."""
    page.open(tab="Simulate", scenario="block_map", owners="true")
    page.press("simulate_run")
    _wait(page.metrics, "the run does not end", 90)
    page.settle()
    document = json.loads(printed("simulate", "block_map", "--json", "--quiet"))
    assert page.metrics() == {
        "Completed": f"{document['completed']:,} of {document['num_requests']:,}",
        "Output tokens/s": f"{document['output_throughput']:,.1f}",
        "Mean TTFT": shown_ms(document["mean_ttft_ms"]),
        "Mean TPOT": shown_ms(document["mean_tpot_ms"]),
        "Mean E2EL": shown_ms(document["mean_e2el_ms"]),
        "Preemptions": f"{document['num_preemptions']:,}",
        "KV peak": f"{document['kv_peak_fraction']:.1%}",
        "GPU power": f"{document['energy']['mean_watts']:,.0f} W",
        "Energy per output token": f"{document['energy']['joules_per_output_token']:.3g} J",
    }
    trace = json.loads(page.download("perfetto", "trace.json"))["traceEvents"]
    owners = {event["ts"]: event["args"] for event in trace if event["name"] == "block owners"}
    first = _owners_seen(page)
    thumb = page.all('.st-key-block_time input[type="range"]')[0]
    for _ in range(3):
        thumb.send_keys(Keys.ARROW_LEFT)
    time.sleep(0.5)
    page.settle()
    second = _owners_seen(page)
    assert first[0] != second[0]
    for moment, rows in (first, second):
        assert rows
        for request, num_blocks, num_shared, ids in rows:
            told = owners[moment][request]
            assert told.startswith(ids.removesuffix("..."))
            mine = _blocks(told)
            others = set().union(
                *(_blocks(t) for who, t in owners[moment].items() if who not in ("", request))
            )
            assert (len(mine), len(mine & others)) == (int(num_blocks), int(num_shared))
    assert page.download("yaml", "block_map.yaml") == printed("simulate", "block_map", "--dump-scenario")


def _owners_seen(page: Page) -> tuple[int, list[tuple[str, str, str, str]]]:
    """Microseconds of the moment shown, and the table of owners under the map."""
    captions = [c.text for c in page.all('[data-testid="stCaptionContainer"]')]
    told = next(m for text in captions if (m := re.match(r"At ([\d.]+) s: \d+ requests hold", text)))
    rows = page.all('[data-testid="stTable"] tbody tr')
    cells = [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")][-4:] for row in rows]
    return round(float(told[1]) * 1e6), [tuple(row) for row in cells]  # type: ignore[misc]


def _blocks(ids: str) -> set[int]:
    """The numbers of `0-3,7`."""
    pairs = (piece.partition("-") for piece in ids.split(","))
    return {n for a, _, b in pairs for n in range(int(a), int(b or a) + 1)}


LOOKS = ((1280, False), (1280, True), (390, False), (390, True))
KEPT = {f"{tab.lower()}-1280.png" for tab in TABS} | {"estimate-1280-dark.png", "estimate-390.png"}
"""The README's pictures."""


def test_every_tab_can_be_looked_at(page: Page, tmp_path: Path) -> None:
    """No exception, nothing wider than the window, charts drawn; a picture of each, small enough to keep."""
    link = {
        "strategies": "strategy_pruning",
        "strategies_set": "problems.num_problems=4",
        "scenario": "priorities",
    }
    keys = ["simulate_run", "compare_run"]
    if "KVPLAN_PICTURES" in os.environ:  # a search takes longer than a test should
        keys.append("recommend_run")
    page.open(**link)
    for number, tab in enumerate(TABS):
        page.all('[role="tab"]')[number].click()
        page.settle()
        for key in keys:
            if page.all(f".st-key-{key} button"):
                page.press(key)
        if tab != "Recommend" or len(keys) == 3:
            _wait(lambda: page.all(".vega-embed svg, .vega-embed canvas"), f"{tab}: no chart", 200)
        for width, dark in LOOKS:
            page.look(width, 880, dark)
            page.settle()
            wider = page.driver.execute_script(
                "return document.documentElement.scrollWidth - window.innerWidth"
            )
            assert wider <= 0, (tab, width)
            _to_the_results(page)
            path = tmp_path / f"{tab.lower()}-{width}{'-dark' if dark else ''}.png"
            page.driver.save_screenshot(str(path))
            assert 5_000 < path.stat().st_size < MAX_PICTURE_BYTES
            if path.name in KEPT and "KVPLAN_PICTURES" in os.environ:
                shutil.copy(path, os.environ["KVPLAN_PICTURES"])
        page.look(1280)


def _to_the_results(page: Page) -> None:
    """Scroll what a button started to the top."""
    for button in page.all('[data-testid="stBaseButton-primary"]'):
        page.driver.execute_script("arguments[0].scrollIntoView({block: 'start'})", button)
