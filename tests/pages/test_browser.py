"""The app in a real browser: what a person sees is what the command line prints. Needs chromium and chromedriver.

With KVPLAN_PICTURES=folder the pictures of the README are written there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="the browser test needs selenium (the dev extra)")
pytest.importorskip("streamlit")

from app_driver import unbroken
from browser_driver import CHROMIUM, DRIVER, Page, browser, served, wait_until
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from kvplan.cli.main import run as cli
from kvplan.pages.widgets import shown_ms

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no chromium and chromedriver here; `make test` installs them where it can",
)
TABS = ("Estimate", "Simulate", "Strategies", "Recommend", "Calibration")
MAX_PICTURE_BYTES = 300_000


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app, served from another folder."""
    with served(tmp_path_factory.mktemp("elsewhere")) as base:
        yield base


@pytest.fixture(scope="module")
def page(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(address, tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints."""

    def of(*words: str) -> str:
        capsys.readouterr()
        cli(list(words))
        return capsys.readouterr().out

    return of


def test_the_first_screen_is_a_plan_that_fits(page: Page, printed: Callable[..., str]) -> None:
    """Somebody new sees the verdict of `kvplan plan`, four figures with their range and a picture, and no red box; the
    same question by hand, and from its link, is the same plan."""
    page.open()
    wait_until(lambda: page.all('[data-testid="stAlertContentSuccess"]'), "no verdict", 60)
    document = json.loads(printed("plan", "Qwen/Qwen3-8B", "--gpu", "1xh100-sxm", "--users", "20", "--thinking", "16K",
                                  "--json", "--quiet", "--workers", "1"))  # fmt: skip
    told = page.all('[data-testid="stAlertContentSuccess"]')[0].text
    assert document["verdict"][1:] in told
    assert not page.all('[data-testid="stAlertContentError"]')
    seen = page.metrics()
    assert len(seen) == 4
    assert page.all(".vega-embed svg .mark-rect path")
    page.choose("model", "Qwen/QwQ-32B")
    page.choose("gpu", "2xh200")
    changed = page.metrics()
    line = [
        "Qwen/QwQ-32B",
        "--gpu",
        "2xh200",
        "--input-len",
        "512",
        "--output-len",
        "16640",
        "--max-model-len",
        "24576",
    ]
    plan = json.loads(printed("estimate", *line, "--json"))
    assert changed["Longest traces at once"] == f"{plan['traces']['at_once']:,}"
    assert plan["serve_command"] in [
        unbroken(code.text.strip()) for code in page.all('[data-testid="stCode"]')
    ]
    link = page.driver.current_url
    assert "QwQ-32B" in link
    assert "2xh200" in link
    page.driver.get("about:blank")
    page.driver.get(link)
    wait_until(lambda: page.all('[data-testid="stMetric"]'), "no figures")
    page.settle()
    assert page.metrics() == changed


def test_a_run_as_seen_and_taken_away(page: Page, printed: Callable[..., str]) -> None:
    """The figures are the command's; the block owners at two times are the exported trace's; the scenario file is the
    one that the command dumps."""
    page.open(tab="Simulate", scenario_source="Bundled scenario", scenario="block_map", owners="true")
    page.press("simulate_run")
    page.wait_for("simulate")
    wait_until(page.metrics, "the run does not end", 90)
    document = json.loads(printed("simulate", "block_map", "--json", "--quiet"))
    assert page.metrics() == {
        "Mean TTFT": shown_ms(document["mean_ttft_ms"]),
        "Mean TPOT": shown_ms(document["mean_tpot_ms"]),
        "Mean E2EL": shown_ms(document["mean_e2el_ms"]),
        "KV peak": f"{document['kv_peak_fraction']:.0%}",
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
    page.unfold("The scenario as a file")
    assert page.download("scenario_yaml", "block_map.yaml") == printed(
        "simulate", "block_map", "--dump-scenario"
    )
    page.unfold("Pictures")
    assert page.download("simulate_kv_svg", "kvplan-simulate-kv.svg").startswith("<svg")


def _owners_seen(page: Page) -> tuple[int, list[tuple[str, str, str, str]]]:
    """Microseconds of the moment shown, and the table of owners under the map."""
    captions = [c.text for c in page.all('[data-testid="stCaptionContainer"]')]
    told = next(m for text in captions if (m := re.match(r"At ([\d.]+) s: \d+ requests hold", text)))
    rows = page.all('.st-key-block_owners [data-testid="stTable"] tbody tr')
    cells = [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")][-4:] for row in rows]
    return round(float(told[1]) * 1e6), [tuple(row) for row in cells]  # type: ignore[misc]


def _blocks(ids: str) -> set[int]:
    """The numbers of `0-3,7`."""
    pairs = (piece.partition("-") for piece in ids.split(","))
    return {n for a, _, b in pairs for n in range(int(a), int(b or a) + 1)}


def test_cancel_answers_within_a_second(page: Page) -> None:
    """From the click to the word, on the page; the best of three, as other tests run beside."""
    tries = []
    while len(tries) < 3 and not (tries and min(tries) < 1.5):  # a second, and the looks of this test
        tries.append(seconds_to_cancel(page))
    assert min(tries) < 1.5


def seconds_to_cancel(page: Page) -> float:
    """Of a run of a million requests."""
    changes = "workload.num_requests=1000000"
    page.open(tab="Simulate", scenario_source="Bundled scenario", scenario="chat", scenario_set=changes)
    page.all(".st-key-simulate_run button")[0].click()
    cancel = wait_until(lambda: page.all(".st-key-simulate_cancel button"), "no way to cancel")[0]
    begun = time.monotonic()
    cancel.click()
    wait_until(
        lambda: "Cancelled" in page.driver.find_element(By.TAG_NAME, "body").text,
        "nobody says that it is cancelled",
        5,
    )
    took = time.monotonic() - begun
    page.wait_for("simulate", 10)
    return took


def test_everything_is_reached_by_keyboard(page: Page) -> None:
    """Tab goes through the sentence to the tabs, and what has the focus is seen to have it."""
    page.look(1280)
    page.open()
    page.driver.execute_script("document.activeElement.blur()")
    seen, bare, cut = [], [], []
    for _ in range(40):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        found = page.driver.execute_script(
            "const e = document.activeElement, k = e.closest('[class*=st-key-]'), s = getComputedStyle(e);"
            "return [k ? k.className.match(/st-key-(\\S+)/)[1] : e.textContent.slice(0, 20), "
            "e === document.body || s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2, "
            "e.outerHTML.slice(0, 200), "
            "e.matches('input, textarea, [role=tab]') && parseFloat(s.outlineOffset) > -3]"
        )
        seen.append(found[0])
        bare += [] if found[1] else found[2:3]
        cut += found[2:3] if found[3] else []
    wanted = ["model", "gpu", "users", "thinking", "prompt", "answer", "slo"]
    assert [key for key in dict.fromkeys(seen) if key in wanted] == wanted
    assert not cut, cut
    assert not bare, bare


STATES: dict[str, tuple[dict[str, object], str]] = {
    "estimate": ({"tab": "Estimate"}, ""),
    "does not fit": ({"tab": "Estimate", "model": "Qwen/QwQ-32B", "gpu": "1xrtx-4090"}, ""),
    "simulate": (
        {"tab": "Simulate", "scenario_source": "Bundled scenario", "scenario": "priorities"},
        "simulate",
    ),
    "every chart of a run": (
        {
            "tab": "Simulate",
            "scenario_source": "Bundled scenario",
            "scenario": "offload_files",
            "scenario_set": "slo={ttft_ms: 90000, tpot_ms: 2000}\nworkload.num_requests=40",
            "owners": "true",
        },
        "simulate",
    ),
    "strategies": (
        {
            "tab": "Strategies",
            "strategies": "strategy_thinking_budget",
            "strategies_set": "problems.num_problems=6",
        },
        "compare",
    ),
    "recommend": ({"tab": "Recommend", "gpu": "2xl40s", "users": "40", "thinking": "2K"}, "plan"),
    "calibration": ({"tab": "Calibration"}, ""),
    "bad link": ({"tab": "Estimate", "modle": "Qwen/QwQ-32B"}, ""),
    "bad value": ({"tab": "Simulate", "thinking": "16 x"}, ""),
}
"""What a tab is like, how a link opens it, and what is run then."""
WIDTHS = (390, 768, 1280, 1920)
KEPT = {f"{name}-1280.png" for name in ("estimate", "simulate", "strategies", "recommend", "calibration")}
KEPT |= {"estimate-1280-dark.png", "estimate-390.png"}
"""The README's pictures."""


@pytest.mark.parametrize("name", STATES)
def test_every_state_can_be_looked_at(name: str, page: Page, tmp_path: Path) -> None:
    """At four widths nothing is cut or wider than the window; in light and dark every word and mark stands out; a
    picture of each, small enough to keep."""
    link, runs = STATES[name]
    page.look(1280)
    page.open(**link)
    wait_until(
        lambda: "some seconds more" not in page.driver.find_element(By.TAG_NAME, "body").text,
        "no verdict",
        90,
    )
    if runs:
        page.press(f"{runs}_run")
        page.wait_for(runs)
    for width in WIDTHS:
        page.look(width, 880)
        time.sleep(0.6)
        page.settle()
        assert not page.clipped(), width
    for width, dark in ((390, False), (390, True), (1280, False), (1280, True)):
        page.look(width, 880, dark)
        time.sleep(0.4)
        page.settle()
        assert not page.unreadable(), (width, dark)
        _to_the_results(page, runs)
        path = tmp_path / f"{name}-{width}{'-dark' if dark else ''}.png"
        page.driver.save_screenshot(str(path))
        assert 5_000 < path.stat().st_size < MAX_PICTURE_BYTES
        if path.name in KEPT and "KVPLAN_PICTURES" in os.environ:
            shutil.copy(path, os.environ["KVPLAN_PICTURES"])


def _to_the_results(page: Page, runs: str) -> None:
    """Scroll what a button started to the top."""
    for button in page.all(f".st-key-{runs}_run button") if runs else []:
        page.driver.execute_script("arguments[0].scrollIntoView({block: 'start'})", button)
        time.sleep(0.3)


def test_who_asks_for_calm_gets_it(page: Page) -> None:
    """With reduced motion asked for, nothing moves."""
    page.look(1280)
    calm = {"name": "prefers-reduced-motion", "value": "reduce"}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [calm]})
    page.driver.get(f"{page.base}/?tab=Estimate")
    wait_until(lambda: page.all('[data-testid="stMetric"]'), "no figures")
    page.settle()
    moving = page.driver.execute_script(
        "return [...document.querySelectorAll('*')].filter(e => { const s = getComputedStyle(e);"
        "return s.animationName !== 'none' && parseFloat(s.animationDuration) > 0 || "
        "s.transitionProperty !== 'none' && s.transitionDuration.split(',').some(d => parseFloat(d) > 0); }).length"
    )
    assert moving == 0
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
