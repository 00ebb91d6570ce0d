"""What the app is like in each of its states, and how a visitor gets there: for tests and for people who look at it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

from browser_driver import Page, wait_until

from kvplan.cli.main import run as cli
from kvplan.models.load import find_bundled


class State(NamedTuple):
    """A link, and what is done then."""

    link: dict[str, object]
    reach: Callable[[Page], None] = lambda page: None
    runs: str = ""
    """Whose button the result stands under; empty = none is pressed."""


def finished(name: str) -> Callable[[Page], None]:
    """Press a button and wait for what it starts."""

    def reach(page: Page) -> None:
        page.press(f"{name}_run")
        page.wait_for(name, 300)

    return reach


def running(name: str, asks: bool = False) -> Callable[[Page], None]:
    """Press a button; say yes if it asks."""

    def reach(page: Page) -> None:
        page.begin(name)
        if asks:
            page.go_on(name)

    return reach


def cancelled(name: str, asks: bool = False, after: str = "% ") -> Callable[[Page], None]:
    """The same, cancelled once it shows something of its progress."""

    def reach(page: Page) -> None:
        running(name, asks)(page)
        bar = f".st-key-{name}_progress, [data-testid='stProgress']"
        wait_until(lambda: any(after in found.text for found in page.all(bar)), f"{name} gets nowhere", 60)
        page.press(f"{name}_cancel")
        page.wait_for(name)

    return reach


def asking(name: str) -> Callable[[Page], None]:
    """Until it asks whether it may take so long."""

    def reach(page: Page) -> None:
        page.begin(name)
        wait_until(lambda: page.all(f".st-key-{name}_go_on button"), f"{name} does not ask", 120)

    return reach


def waiting(page: Page) -> None:
    """Behind as many long runs as there are turns."""
    here, link = page.driver.current_window_handle, page.driver.current_url
    for _ in range(2):
        page.driver.switch_to.new_window("window")
        page.driver.get(link)
        page.settle()
        running("simulate", asks=True)(page)
    page.driver.switch_to.window(here)
    page.press("simulate_run")
    wait_until(lambda: "Waiting for a turn" in page.text(), "it does not wait")


def pasted(key: str, text: str, under: str = "") -> Callable[[Page], None]:
    """Text in a box that is folded away."""

    def reach(page: Page) -> None:
        if under:
            page.unfold(under)
        page.paste(key, text)

    return reach


def uploaded(*files: tuple[str, str, bytes], under: str = "", then: str = "") -> Callable[[Page], None]:
    """Files for upload boxes, by key and name; then a button."""

    def reach(page: Page) -> None:
        if under:
            page.unfold(under)
        folder = Path(mkdtemp(prefix="kvplan-upload-"))
        for key, name, content in files:
            (folder / name).write_bytes(content)
            page.upload(key, folder / name)
        if then:
            finished(then)(page)

    return reach


def unfolded(*titles: str) -> Callable[[Page], None]:
    """What is folded away, opened."""

    def reach(page: Page) -> None:
        for title in titles:
            page.unfold(title)

    return reach


def changed(name: str, key: str, value: str) -> Callable[[Page], None]:
    """A result whose inputs have changed since."""

    def reach(page: Page) -> None:
        finished(name)(page)
        page.paste(key, value)

    return reach


def _config() -> str:
    bundled = find_bundled("Qwen/Qwen3-8B")
    assert bundled is not None
    return bundled.read_text()


def _records() -> bytes:
    path = Path(mkdtemp(prefix="kvplan-records-")) / "r.csv"
    cli(["simulate", "chat", "--set", "workload.num_requests=20", "--quiet", "--records", str(path)])
    return path.read_bytes()


def two_runs(page: Page) -> None:
    """A run beside itself."""
    uploaded(("real", "real.csv", _records()), ("simulated", "ours.csv", _records()))(page)


TABLE = "\n".join(
    ["problem,sample,tokens,correct"]
    + [f"{p},{s},{500 + 10 * s},{int(s % 2 == 0)}" for p in range(3) for s in range(8)]
).encode()
LOG = """INFO 09-01 [api_server.py:1896] vLLM API server version 0.11.0
(APIServer pid=1) INFO non-default args: {'model': 'Qwen/Qwen3-32B', 'max_model_len': 16000}
(EngineCore_DP0 pid=22) INFO Model loading took 61.0300 GiB and 5.2 seconds
(EngineCore_DP0 pid=22) INFO [gpu_worker.py:298] Available KV cache memory: 4.45 GiB
(EngineCore_DP0 pid=22) INFO [kv_cache_utils.py:1087] GPU KV cache size: 18,176 tokens
"""
LONG: dict[str, object] = {
    "tab": "Simulate", "scenario_source": "Bundled scenario", "scenario": "chat",
    "scenario_set": "workload.num_requests=1000000",
}  # fmt: skip
SEARCH: dict[str, object] = {"tab": "Recommend", "search_source": "Bundled scenario"}
MANY_PEOPLE: dict[str, object] = {"model": "deepseek-ai/DeepSeek-R1", "gpu": "8xh200", "users": "500"}
SMALL_SEARCH = """workload.num_requests=100
search.ranges=false
search.over={gpu: [h100, h200], engine.tensor_parallel_size: [2]}"""
MANY = "problems.num_problems=5000"
STATES: dict[str, State] = {
    "estimate": State({"tab": "Estimate"}),
    "estimate sglang": State({"tab": "Estimate", "engine": "sglang", "users": "300", "num_samples": "8"}),
    "estimate checked": State({"tab": "Estimate", "users": "4", "thinking": "512", "gpu": "1xl40s"}, finished("plan")),
    "estimate running": State({"tab": "Estimate"} | MANY_PEOPLE,
                              running("plan")),
    "estimate cancelled": State({"tab": "Estimate"} | MANY_PEOPLE,
                                cancelled("plan", after="so far")),
    "no card counted": State({"tab": "Estimate", "model": "deepseek-ai/DeepSeek-R1", "gpu": "h200"}),
    "does not fit": State({"tab": "Estimate", "model": "Qwen/QwQ-32B", "gpu": "1xrtx-4090"}),
    "sources": State({"tab": "Estimate"}, unfolded("Every figure")),
    "sidebar": State({"tab": "Estimate", "speculative_method": "ngram"},
                     unfolded("Your own model", "More of the question", "More engine flags")),
    "tiers": State({"tab": "Estimate", "kv_offloading_size": "200", "file_tier": "local"}),
    "own config": State({"tab": "Estimate"}, pasted("config_text", _config(), "Your own model")),
    "bad paste": State({"tab": "Estimate"}, pasted("config_text", "9" * 6000, "Your own model")),
    "log": State({"tab": "Estimate", "model": "Qwen/Qwen3-32B", "gpu": "h100-sxm", "thinking": "1K",
                  "log_is_mine": "true"}, pasted("log", LOG, "Paste an engine")),
    "bad log": State({"tab": "Estimate"}, pasted("log", "nothing of an engine", "Paste an engine")),
    "bad link": State({"tab": "Estimate", "modle": "Qwen/QwQ-32B"}),
    "bad value": State({"tab": "Simulate", "thinking": "16 x"}),
    "simulate first": State({"tab": "Simulate"}),
    "simulate bundled": State({"tab": "Simulate", "scenario_source": "Bundled scenario", "scenario": "chat"}),
    "simulate no file": State({"tab": "Simulate", "scenario_source": "Your scenario"}),
    "simulate own": State({"tab": "Simulate", "scenario_source": "Your scenario"},
                          uploaded(("scenario_file", "mine.yaml", b"model: Qwen/Qwen3-8B\ngpu: l40s\nworkload:\n"
                                    b"  num_requests: 40\n  arrivals: {kind: poisson, rate: 2}\n"), then="simulate")),
    "simulate bad file": State({"tab": "Simulate", "scenario_source": "Your scenario"},
                               uploaded(("scenario_file", "mine.yaml", b"modle: x\n"))),
    "simulate": State({"tab": "Simulate", "scenario_source": "Bundled scenario", "scenario": "priorities"},
                      finished("simulate"), "simulate"),
    "simulate question": State({"tab": "Simulate", "thinking": "1K", "num_prompts": "100"}, finished("simulate"),
                               "simulate"),
    "every chart of a run": State({
        "tab": "Simulate", "scenario_source": "Bundled scenario", "scenario": "offload_files",
        "scenario_set": "slo={ttft_ms: 90000, tpot_ms: 2000}\nworkload.num_requests=40", "owners": "true",
    }, finished("simulate"), "simulate"),
    "simulate asking": State(LONG, asking("simulate"), "simulate"),
    "simulate running": State(LONG, running("simulate", asks=True), "simulate"),
    "simulate waiting": State(LONG, waiting, "simulate"),
    "simulate cancelled": State(LONG, cancelled("simulate", asks=True), "simulate"),
    "simulate failed": State({"tab": "Simulate", "scenario_source": "Bundled scenario", "scenario": "chat",
                              "scenario_set": "engine.num_gpu_blocks_override=3"}, finished("simulate"), "simulate"),
    "simulate stale": State({"tab": "Simulate", "scenario_source": "Bundled scenario", "scenario": "chat"},
                            changed("simulate", "scenario_set", "workload.num_requests=20"), "simulate"),
    "strategies first": State({"tab": "Strategies"}),
    "strategies": State({"tab": "Strategies", "strategies": "strategy_thinking_budget",
                         "strategies_set": "problems.num_problems=6"}, finished("compare"), "compare"),
    "strategies running": State({"tab": "Strategies", "strategies_set": MANY}, running("compare"), "compare"),
    "strategies cancelled": State({"tab": "Strategies", "strategies_set": MANY}, cancelled("compare", after=" "),
                                  "compare"),
    "strategies own samples": State(
        {"tab": "Strategies", "strategies": "strategy_best_of_n",
         "strategies_set": "problems.strategies=[{strategy: best_of_n, n: 4}]"},
        uploaded(("pass_table", "mine.csv", TABLE), under="Your own samples", then="compare"), "compare"),
    "strategies bad samples": State({"tab": "Strategies"}, uploaded(("pass_table", "mine.csv", b"a,b\n1,2\n"),
                                                                    under="Your own samples", then="compare")),
    "strategies refused": State({"tab": "Strategies", "strategies_set": "problems.num_problem=3"}),
    "recommend first": State({"tab": "Recommend", "gpu": "2xl40s", "users": "40", "thinking": "2K"}),
    "recommend": State({"tab": "Recommend", "gpu": "2xl40s", "users": "40", "thinking": "2K"},
                       finished("plan"), "plan"),
    "recommend missed": State({"tab": "Recommend", "gpu": "1xl40s", "users": "4", "thinking": "512", "slo": "tpot<1ms"},
                              finished("plan"), "plan"),
    "recommend running": State({"tab": "Recommend"} | MANY_PEOPLE,
                               running("plan")),
    "recommend cancelled": State({"tab": "Recommend"} | MANY_PEOPLE, cancelled("plan", after="so far")),
    "search first": State(SEARCH),
    "search": State(SEARCH | {"search_set": SMALL_SEARCH}, finished("recommend"), "recommend"),
    "search running": State(SEARCH, running("recommend"), "recommend"),
    "search cancelled": State(SEARCH, cancelled("recommend", after="so far"), "recommend"),
    "search no file": State({"tab": "Recommend", "search_source": "Your scenario"}),
    "search refused": State(SEARCH | {"search_set": "search.max_gpu=3"}),
    "calibration": State({"tab": "Calibration"}),
    "calibration kernels": State({"tab": "Calibration", "profile": "l40s-vllm"}),
    "calibration fit": State({"tab": "Calibration", "profile": "rtx-4090-vllm", "measurements": "vllm-cpu-0.32.jsonl"},
                             finished("fit"), "fit"),
    "calibration bad file": State({"tab": "Calibration"},
                                  uploaded(("measured", "mine.jsonl", b"{not json"), then="fit"), "fit"),
    "real run": State({"tab": "Calibration", "profile": "rtx-4090-vllm"}, two_runs),
}  # fmt: skip
"""By name."""
