"""On a terminal the same words as in a pipe, laid out for its width; in a pipe plain text, and nothing of rich."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT
from rich.console import Console

import kvplan
from kvplan.cli.main import run
from kvplan.cli.progress import shown_progress, shown_stages
from kvplan.cli.sparkline import BLOCKS, kv_lines, sparkline
from kvplan.cli.terminal import draw, turned
from kvplan.ground.tables import Part, Table, text_of

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
FIGURES = Table(
    ("", "strategy", "accuracy", "p99 s", "limited by"),
    (("*", "single_pass", "40.1%", "31.2", "kv_blocks"), ("", "best_of_n", "61.0%", "44.9", "compute")),
    frozenset({0, 1, 4}),
)


def on_a_terminal(parts: list[Part], width: int = 100) -> str:
    out = io.StringIO()
    draw(parts, Console(file=out, force_terminal=True, width=width, color_system="truecolor"))
    return out.getvalue()


def plain(text: str) -> str:
    return ESCAPE.sub("", text)


def run_on_a_terminal(words: list[str], columns: int = 100) -> str:
    """What a command writes where standard output and error are a terminal."""
    ours, theirs = pty.openpty()
    env = os.environ | {"COLUMNS": str(columns), "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    env.pop("NO_COLOR", None)
    child = subprocess.Popen([sys.executable, "-m", "kvplan", *words], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(ours)
    child.wait()
    return said.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("width", [70, 80, 140])
def test_a_plan_says_the_same_words_at_any_width(width: int) -> None:
    """Folded and coloured, no word is lost or cut."""
    plan = kvplan.estimate("Qwen/Qwen3-8B", "h100", input_len=512, output_len="16K", num_samples=32)
    said = on_a_terminal(plan.parts(), width)
    assert said != plain(said)
    assert plain(said).split() == text_of(plan.parts()).split()
    table = plain(on_a_terminal(plan.parts()[:1], width))
    assert max(map(len, table.splitlines())) <= width


def test_lines_are_never_broken() -> None:
    """So that a command can be copied."""
    command = "vllm serve Qwen/QwQ-32B --kv-cache-dtype fp8 --max-model-len 40960 --tensor-parallel-size 2"
    assert plain(on_a_terminal([command], 40)).splitlines() == [command]


def test_markup_and_emoji_in_texts_are_text() -> None:
    said = plain(on_a_terminal(["[bold]x[/] :rocket: [1]", Table(("a",), (("[red]y[/]",),))]))
    assert said.split() == ["[bold]x[/]", ":rocket:", "[1]", "a", "[red]y[/]"]


def test_a_table_wider_than_the_terminal_is_turned() -> None:
    """Every figure of it stays whole; one too wide either way is its plain form."""
    assert "single_pass" in plain(on_a_terminal([FIGURES], 60)).splitlines()[1]
    narrow = plain(on_a_terminal([FIGURES], 40))
    assert sorted(narrow.split()) == sorted(str(FIGURES).split())
    assert any(line.split() == ["accuracy", "40.1%", "61.0%"] for line in narrow.splitlines())
    assert plain(on_a_terminal([FIGURES], 20)).rstrip() == str(FIGURES)


def test_turning_twice_is_the_table() -> None:
    """Titles as the first row."""
    again = turned(turned(FIGURES))
    assert [row[1:] for row in again.rows if any(row)] == [FIGURES.titles, *FIGURES.rows]


def test_a_wide_plain_table_goes_on_in_a_second_line() -> None:
    """Of every row, beginning with the column named."""
    row = tuple(f"{'x' * 30}{i}" for i in range(4))
    lines = Table(("a", "b", "c", "d"), (row,), fold=2).lines()
    assert [line.split() for line in lines] == [["a", "b"], ["c", "d"], list(row[:2]), list(row[2:])]
    assert len(Table(("a", "b"), (("1", "2"),), fold=1).lines()) == 2


def test_a_command_on_a_terminal() -> None:
    """Coloured there, plain in a pipe, the same words."""
    words = ["estimate", "Qwen/Qwen3-8B", "--gpu", "h100"]
    shown = run_on_a_terminal(words)
    piped = subprocess.run(
        [sys.executable, "-m", "kvplan", *words], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "\x1b[" in shown
    assert "\x1b[" not in piped.stdout
    assert plain(shown).split() == piped.stdout.split()


def test_a_bar_on_a_terminal_leaves_nothing_behind() -> None:
    """Drawn, taken away, the cursor back; the answer stands below."""
    shown = run_on_a_terminal(["simulate", "chat", "--set", "workload.num_requests=20", "--no-range"])
    assert "requests" in shown.partition("=====")[0]
    assert "KV over time [" in plain(shown)
    assert shown.rfind(SHOW) > shown.rfind(HIDE) >= 0


@given(st.lists(st.tuples(st.floats(0.01, 50), st.floats(0, 1)), min_size=2, max_size=40), st.integers(1, 60))
def test_a_sparkline_shows_the_highest_of_each_slot(steps: list[tuple[float, float]], width: int) -> None:
    """As a fine scan of the steps finds it, a block at most of rounding at the edges of a slot."""
    times = np.cumsum([0.0, *(step for step, _ in steps)])
    shares = np.array([0.0, *(share for _, share in steps)])
    line = sparkline(list(times), list(shares), width)
    assert len(line) == width
    scan = np.linspace(times[0], times[-1], 40 * width + 1)[:-1]
    held = shares[np.searchsorted(times, scan, side="right") - 1].reshape(width, 40).max(axis=1)
    shown = np.array([BLOCKS.index(block) for block in line])
    assert (shown >= np.floor(held * 8 - 1e-6)).all()
    assert shown.max() == max(BLOCKS.index(b) for b in sparkline([0, 1], [shares[:-1].max()] * 2, 1))


def test_a_sparkline_of_known_steps() -> None:
    """Blank only where nothing is in use, the full block only where all is."""
    assert sparkline([0, 1, 2, 3, 4], [0.0, 0.001, 0.999, 1.0, 0.0], 4) == " ▁▇█"
    assert sparkline([0, 8], [0.5, 0.0], 8) == "▄" * 8
    assert (
        sparkline([3], [0.5]) == sparkline([3, 3], [0.5, 0.5]) == sparkline([float("nan")] * 2, [1, 1]) == ""
    )


def test_kv_over_time_stands_below_a_simulation_that_is_asked_for_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And on a terminal; a pipe that does not ask gets none."""
    words = ["simulate", "chat", "--set", "workload.num_requests=20", "--no-range", "--quiet"]
    assert run(words) == 0
    assert "KV over time" not in (silent := capsys.readouterr().out)
    assert run([*words, "--spark"]) == 0
    *before, last = capsys.readouterr().out.splitlines()
    assert before == silent.splitlines()
    result = kvplan.simulate(kvplan.load_scenario("chat", ["workload.num_requests=20"]))
    peak = max(sample.used_blocks for sample in result.samples) / result.pool.num_blocks
    assert re.fullmatch(
        rf"KV over time \[.{{48}}\] \d+ s, highest {peak:.1%} of {result.pool_tokens:,} tokens", last
    )
    assert kv_lines([0.0], [0.5], is_asked=True, pool="it") == []


def test_kv_over_time_of_saved_pages(capsys: pytest.CaptureFixture[str]) -> None:
    """`watch` draws the pages' own shares; the pool that filled up ends high."""
    pages = str(ROOT / "tests" / "fixtures" / "watch" / "rollout.prom")
    run(["watch", pages, "--spark"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith("highest 98.1% of 51,200 tokens")
    blocks = [BLOCKS.index(block) for block in line.partition("[")[2].partition("]")[0]]
    assert blocks == sorted(blocks)
    assert (blocks[0], blocks[-1]) == (0, 7)


def test_rich_loads_on_terminals_only() -> None:
    code = (
        "import sys; from kvplan.cli.main import run; run(['estimate', 'Qwen/Qwen3-8B', '--gpu', 'h100']);"
        "run('simulate chat --set workload.num_requests=5 --no-range'.split());"
        "print(sorted(m for m in sys.modules if m.split('.')[0] == 'rich'), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_tenths_are_told_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    """Of every stage; nothing when quiet."""
    with shown_progress("points") as progress:
        assert progress is not None
        for done in range(101):
            progress(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{10 * i}% {10 * i} of 100 points" for i in range(1, 11)]
    with shown_stages("points") as stages:
        for total in (2, 4):
            stages("attention", total, total)
    assert capsys.readouterr().err.splitlines() == ["100% 2 of 2 points", "100% 4 of 4 points"]
    with shown_progress("points", quiet=True) as none:
        assert none is None
