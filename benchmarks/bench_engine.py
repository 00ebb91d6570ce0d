"""How many engine steps one CPU second gives, step by step: the scheduler alone, no records, no step times."""

from __future__ import annotations

from time import process_time

from kvplan.ground.content import Segment
from kvplan.schedulers.vllm import EngineConfig, Request, make_scheduler


def steps_per_cpu_s(batch: int, steps: int, **flags: object) -> float:
    """Decode `batch` requests for `steps` steps; return steps per CPU second."""
    blocks = 3 * batch * (steps // 16 + 80) + 1  # room for all, window groups too
    config = EngineConfig(num_gpu_blocks=blocks, max_model_len=steps + 100, **flags)
    scheduler = make_scheduler(config)
    for i in range(batch):
        scheduler.add_request(Request(f"r{i}", (Segment(f"p{i}", 17 + i),), max_tokens=steps))
    in_flight = [scheduler.schedule()]
    for _ in range(2):  # prefill is not decode
        in_flight.append(scheduler.schedule())
        scheduler.update_from_output(in_flight.pop(0))
    if not config.async_scheduling:
        scheduler.update_from_output(in_flight.pop(0))
    start = process_time()
    for _ in range(steps - 10):
        in_flight.append(scheduler.schedule())
        scheduler.update_from_output(in_flight.pop(0))
    return (steps - 10) / (process_time() - start)


def main() -> None:
    """Print a table: steps per CPU second, and per scheduled request."""
    print(f"{'pure decode':42}{'batch':>6}{'steps/CPU s':>13}{'us/request':>12}")
    cases = {
        "sync, prefix caching": {},
        "sync, no prefix caching": {"enable_prefix_caching": False},
        "async, prefix caching": {"async_scheduling": True},
        "sync, full + sliding window": {
            "kv_cache_groups": ({"kind": "full"}, {"kind": "sliding_window", "window": 1024})
        },
        "sync, full + 3 mamba": {"kv_cache_groups": ({"kind": "full"}, {"kind": "mamba", "repeat": 3})},
        "sync, 3 drafts": {"num_speculative_tokens": 3},
    }
    for name, flags in cases.items():
        for batch in (1, 32, 256):
            rate = max(steps_per_cpu_s(batch, max(200, 60_000 // batch), **flags) for _ in range(2))
            print(f"{name:42}{batch:>6}{rate:>13,.0f}{1e6 / rate / batch:>12.2f}")


if __name__ == "__main__":
    main()
