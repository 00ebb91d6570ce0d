"""How fast a memory plan answers: a cold `kvplan estimate`, warm plans, ways out, a million capacity points.

CPU seconds of child processes, so that a busy machine does not count; the yardstick runs beside it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from kvplan.formulas.capacity import full_blocks, num_sequences, window_resident_blocks
from kvplan.ground.gpu import get_gpu
from kvplan.memory.demand import Demand
from kvplan.memory.forward import estimate
from kvplan.memory.inverse import what_would_fit
from kvplan.models.load import load_model

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = [sys.executable, "-c", "import numpy, pydantic"]
COLD = [sys.executable, "-m", "kvplan", "estimate", "Qwen/Qwen3-8B", "--gpu", "h100", "--output-len", "16K"]

NEVER_ASKED = (
    "Qwen/Qwen3-4B",
    "Qwen/Qwen3-14B",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen2.5-72B-Instruct",
    "Qwen/QwQ-32B",
)
"""Models whose weights and pages are not known from an earlier question."""


def child_cpu_s(command: list[str]) -> float:
    """CPU seconds of one run of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def million_points() -> object:
    """Traces that fit, for 1,000 lengths x 1,000 pool sizes, full and windowed groups."""
    lengths = np.linspace(1_000, 1_000_000, 1_000, dtype=np.int64)[:, None]
    pools = np.linspace(1_000, 1_000_000, 1_000, dtype=np.int64)
    return num_sequences(pools, full_blocks(lengths, 16) + window_resident_blocks(lengths, 4_096, 16))


def main() -> None:
    child_cpu_s(COLD)
    pairs = [(child_cpu_s(COLD), child_cpu_s(IMPORTS)) for _ in range(7)]
    cold, imports = (median(column) for column in zip(*pairs, strict=True))
    print(f"kvplan estimate, cold        {cold:6.3f} s CPU   goal: 0.3 s")
    print(f"import numpy, pydantic       {imports:6.3f} s CPU   ratio {cold / imports:.2f}")
    model, card = load_model("Qwen/Qwen3-8B"), get_gpu("h100")
    warm = median(cpu_s(lambda: estimate(model, card)) for _ in range(9))
    new = median(cpu_s(partial(estimate, one, card)) for one in map(load_model, NEVER_ASKED))
    crowded = estimate(model, card, demand=Demand(input_len=512, output_len=16_384, num_samples=64))
    ways_out = median(cpu_s(lambda: what_would_fit(crowded)) for _ in range(9))
    points = median(cpu_s(million_points) for _ in range(5))
    print(f"estimate(), a new model      {new:6.4f} s CPU")
    print(f"estimate(), model known      {warm:6.4f} s CPU   ratio {warm / new:.2f}")
    print(f"what_would_fit()             {ways_out:6.4f} s CPU   {ways_out / warm:.0f} x estimate()")
    print(f"a million capacity points    {points:6.3f} s CPU   goal: 0.2 s")


if __name__ == "__main__":
    main()
