"""The app in a real browser: served as `kvplan app` serves it, a page to open, type into, press and look at."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from places import ROOT
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

HERE = Path(__file__).parent / "pages"
"""Where the scripts lie that look at a page."""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The app, served as `kvplan app` serves it, from another folder; its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "kvplan", "app", f"--port={port}", "--address=127.0.0.1"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    base = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(f"{base}/_stcore/health"), "the server does not answer", 60)
        yield base
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def wait_until(met: Callable[[], Any], complaint: str, seconds: float = 30) -> Any:
    """What `met` returns once it is true. Raises AssertionError with the complaint."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = met()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(complaint)


@contextmanager
def browser(base: str, folder: Path) -> Iterator[Page]:
    """A browser with one page; what it downloads and its profile lie in the folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    allowed = {"behavior": "allow", "downloadPath": str(folder)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
    try:
        found = Page(driver, base, folder)
        found.look(1280)
        yield found
    finally:
        driver.quit()


class Page:
    """A tab of the browser with the app in it."""

    def __init__(self, driver: Any, base: str, downloads: Path) -> None:
        self.driver, self.base, self.downloads = driver, base, downloads

    def open(self, **inputs: object) -> None:
        """Open a link."""
        self.driver.get(f"{self.base}/?{urlencode(inputs)}")
        wait_until(lambda: self.all("h1"), "no title")
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
                '[data-test-script-state]:not([data-test-script-state="notRunning"])',
            )
        )
        calm = 0

        def quiet() -> bool:
            nonlocal calm
            calm = 0 if self.all(busy) else calm + 1
            return calm >= 4

        wait_until(quiet, "the page does not come to rest", 60)
        assert not self.all('[data-testid="stException"]')

    def look(self, width: int, height: int = 900, dark: bool = False) -> None:
        """A window of this size, in light or dark; nothing is pointed at."""
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 1, "y": 1})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def choose(self, key: str, value: str) -> None:
        """Type a choice into a select box."""
        box = wait_until(lambda: self.all(f".st-key-{key} input"), f"no input {key}")[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
        box.click()
        box.send_keys(value)
        wait_until(lambda: self.all('[role="option"]'), "no options")
        box.send_keys(Keys.ENTER)
        time.sleep(0.3)
        self.settle()

    def press(self, key: str) -> None:
        """Press a button, once it is seen: one in a section that is just opening is not yet."""
        buttons = partial(self.all, f".st-key-{key} button")
        button = wait_until(lambda: [b for b in buttons() if b.is_displayed()], f"no button {key}")[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        time.sleep(0.3)
        self.settle()

    def wait_for(self, name: str, seconds: float = 90) -> None:
        """Wait until a run is over."""
        wait_until(lambda: not self.all(f".st-key-{name}_cancel button"), f"{name} does not end", seconds)
        self.settle()

    def unreadable(self) -> list[str]:
        """Text below 4.5:1 and marks of charts below 3:1."""
        found = self.driver.execute_script((HERE / "contrast.js").read_text())
        assert found["texts"] > 10
        return list(found["faults"])

    def clipped(self) -> list[str]:
        """What does not fit where it stands."""
        return list(self.driver.execute_script((HERE / "clipped.js").read_text()))

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
                wait_until(path.is_file, f"{name} was not downloaded", 20)
            except AssertionError:
                continue
            return path.read_text()
        raise AssertionError(f"{name} was not downloaded")

    def begin(self, name: str) -> None:
        """Press a run's button, and wait until the run is seen to go on."""
        self.press(f"{name}_run")
        wait_until(lambda: self.all(f".st-key-{name}_cancel button"), f"{name} does not begin")

    def go_on(self, name: str) -> None:
        """Say that a long run may take so long, and wait until it goes on."""
        wait_until(lambda: self.all(f".st-key-{name}_go_on button"), f"{name} does not ask", 120)
        self.press(f"{name}_go_on")
        wait_until(lambda: not self.all(f".st-key-{name}_go_on button"), f"{name} does not go on")

    def upload(self, key: str, path: Path) -> None:
        """Hand a file over."""
        place = wait_until(lambda: self.all(f'.st-key-{key} input[type="file"]'), f"no upload {key}")[0]
        place.send_keys(str(path))
        time.sleep(0.5)
        self.settle()

    def paste(self, key: str, text: str) -> None:
        """Text into a box of several lines."""
        box = wait_until(lambda: self.all(f".st-key-{key} textarea"), f"no box {key}")[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
        box.click()
        self.driver.execute_cdp_cmd("Input.insertText", {"text": text})
        box.send_keys(Keys.CONTROL, Keys.ENTER)
        time.sleep(0.5)
        self.settle()

    def unfold(self, title: str) -> None:
        """Open what is folded away under a title."""
        for summary in self.all('[data-testid="stExpander"] summary'):
            if title in summary.text and summary.is_displayed():
                if summary.find_element(By.XPATH, "..").get_attribute("open") is None:
                    summary.click()
                    time.sleep(0.4)
                return
        raise AssertionError(title)

    def alone(self) -> None:
        """Close the other tabs, and what runs in them."""
        here = self.driver.current_window_handle
        for other in set(self.driver.window_handles) - {here}:
            self.driver.switch_to.window(other)
            self.driver.close()
        self.driver.switch_to.window(here)

    def grow(self, width: int, most: int = 4000) -> None:
        """A window of this width, as high as what it shows, down to so many pixels."""
        self.look(width)
        time.sleep(0.4)
        self.settle()
        main = "document.querySelector('[data-testid=\"stMain\"]')"
        self.driver.execute_script(f"{main}.scrollTop = 0")
        self.look(width, max(900, min(most, self.driver.execute_script(f"return {main}.scrollHeight") + 20)))
        time.sleep(0.4)

    def light(self, dark: bool) -> None:
        """In light or dark, the window as it is."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        time.sleep(0.4)

    def text(self) -> str:
        """All that is read on the page."""
        return str(self.driver.find_element(By.TAG_NAME, "body").text)

    def first_answer(self) -> None:
        """Wait until what somebody new is shown is answered."""
        wait_until(lambda: "some seconds more" not in self.text(), "no verdict", 90)
