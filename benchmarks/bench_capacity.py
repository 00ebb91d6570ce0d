"""A million capacity points by broadcasting, and one layout: CPU seconds, and each against one numpy pass."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time

import numpy as np

from kvplan.engines.flags import EngineArgs
from kvplan.formulas import capacity as cap
from kvplan.memory.layout import kv_layout
from kvplan.models.load import load_model

LENGTHS = np.arange(1, 1001)[:, None] * 128
"""A thousand lengths down, a thousand other figures across."""
ACROSS = np.arange(1, 1001)[None, :]


def best_of(run: Callable[[], object], repeats: int = 5) -> float:
    """Least CPU seconds of a few runs."""
    seconds = []
    for _ in range(repeats):
        start = process_time()
        run()
        seconds.append(process_time() - start)
    return min(seconds)


def main() -> None:
    points = {
        "bytes of a sequence": lambda: cap.sequence_bytes(LENGTHS, cap.kv_bytes_per_token(ACROSS, 8, 128)),
        "blocks reserved for a window": lambda: cap.window_blocks(LENGTHS, ACROSS, 16_384, 16),
        "blocks held in a window": lambda: cap.window_resident_blocks(LENGTHS, ACROSS, 16),
        "max concurrency": lambda: cap.max_concurrency(ACROSS * 1_000, cap.full_blocks(LENGTHS, 16)),
        "sequences that fit": lambda: cap.num_sequences(ACROSS * 1_000, cap.full_blocks(LENGTHS, 16)),
        "mean residency": lambda: cap.mean_resident_blocks(LENGTHS, ACROSS * 32, 16),
        "tree of 3 levels": lambda: cap.tree_blocks(
            [[[1]], [[4]], [[16]]], np.stack(np.broadcast_arrays(LENGTHS, ACROSS, LENGTHS)), 16
        ),
        "overflow probability": lambda: cap.overflow_probability(ACROSS, LENGTHS * 8, 500.0, 250.0),
    }
    one_pass = best_of(lambda: LENGTHS * ACROSS)
    for name, run in points.items():
        seconds = best_of(run, 3)
        print(
            f"{name:<30}{seconds:8.3f} s for a million points   {seconds / one_pass:6.1f} x one multiplication"
        )
    model, args = (
        load_model("qwen3.5-397b-a17b"),
        EngineArgs(tensor_parallel_size=8, max_num_batched_tokens=8192),
    )
    print(
        f"{'layout of a 60-layer hybrid':<30}{best_of(lambda: kv_layout(model, args, 20 << 30)) * 1e3:8.2f} ms"
    )


if __name__ == "__main__":
    main()
