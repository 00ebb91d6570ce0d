"""How fast the app's closed-form tab redraws: milliseconds of CPU from a turned knob to the page's last element.

Each redraw has an input that was never asked before, so no result comes from a cache; the test harness's own share is
counted too. The yardstick is the same page redrawn without a change.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from statistics import median
from typing import Any

from streamlit.testing.v1 import AppTest

APP = Path(__file__).resolve().parents[1] / "app.py"
KNOBS: dict[str, tuple[int, ...]] = {
    "num_samples": (3, 5, 6, 7),
    "thinking": (9_001, 12_001, 15_001, 18_001),
    "prompt": (100, 400, 700, 900),
}
"""What is turned, one after the other, and to which values; samples are counted from the case's own."""
CASES: dict[str, dict[str, Any]] = {
    "fits": {"model": "Qwen/Qwen3-8B", "gpu": "h100-sxm", "num_samples": 4},
    "does not fit": {"model": "Qwen/Qwen3-8B", "gpu": "h100-sxm", "num_samples": 64},
    "mixture of experts": {"model": "Qwen/Qwen3-30B-A3B", "gpu": "h200", "num_samples": 512},
    "MLA, fits": {"model": "deepseek-ai/DeepSeek-R1", "gpu": "h200", "tp": 8, "num_samples": 8},
    "MLA, does not fit": {"model": "deepseek-ai/DeepSeek-R1", "gpu": "h200", "tp": 8, "num_samples": 4096},
    "MLA, weights too big": {"model": "deepseek-ai/DeepSeek-R1", "gpu": "rtx-4090", "num_samples": 8},
    "hybrid, fits": {"model": "Qwen/Qwen3-Next-80B-A3B-Thinking", "gpu": "h200", "tp": 2, "num_samples": 8},
    "hybrid, does not fit": {"model": "Qwen/Qwen3-Next-80B-A3B-Thinking", "gpu": "h200", "num_samples": 2048},
    "sglang": {"model": "Qwen/QwQ-32B", "gpu": "h200", "engine": "sglang", "num_samples": 64},
}


def redraw_ms(app: AppTest) -> float:
    """CPU milliseconds of one run of the page."""
    start = time.process_time()
    app.run()
    assert not app.exception, [e.value for e in app.exception]
    return 1e3 * (time.process_time() - start)


def opened(inputs: dict[str, Any]) -> tuple[AppTest, float]:
    """The app as this link opens it, and what that took."""
    app = AppTest.from_file(str(APP), default_timeout=120)
    for key, value in inputs.items():
        app.query_params[key] = str(value)
    return app, redraw_ms(app)


def turned(app: AppTest, samples: int) -> list[float]:
    """CPU milliseconds of every redraw after a knob is turned."""
    found = []
    for key, values in KNOBS.items():
        for value in values:
            app.text_input(key=key).set_value(str(value + samples if key == "num_samples" else value))
            found.append(redraw_ms(app))
    return found


def main() -> None:
    logging.getLogger("streamlit").setLevel(logging.ERROR)
    opened({})
    print(f"{'CPU ms':<24}{'first look':>11}{'median':>8}{'worst':>8}{'unchanged':>11}{'ratio':>7}")
    for name, inputs in CASES.items():
        app, first = opened(inputs)
        times = turned(app, inputs["num_samples"])
        same = median(redraw_ms(app) for _ in range(5))
        middle, worst = median(times), max(times)
        print(f"{name:<24}{first:>11.0f}{middle:>8.0f}{worst:>8.0f}{same:>11.0f}{middle / same:>7.1f}")
    print("goal: a redraw within 200 ms")


if __name__ == "__main__":
    main()
