"""Compare the leap with the step-by-step scheduler on many random workloads: decisions, blocks, hits, evictions, ends.

    python benchmarks/sweep_leap.py [NUM_SEEDS [FIRST_SEED]]        sync and async; exits 1 if any differs

The default suite tries a few hundred; rules about copies of equal blocks show on one workload in thousands.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from time import process_time

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from leap_replay import LeapReplay, difference
from leap_scenarios import random_scenario

from kvplan.engine.async_scheduler import make_scheduler
from kvplan.engine.replay import Replay
from kvplan.engine.scenario import Scenario


def main(num_seeds: int = 2000, first_seed: int = 0) -> int:
    """Print each seed that differs, and totals."""
    start, bad = process_time(), 0
    leaps = leapt = real = preemptions = 0
    for seed in range(first_seed, first_seed + num_seeds):
        row = random_scenario(Random(seed))
        for is_async in (False, True):
            scenario = Scenario(**row | {"async_scheduling": is_async})
            theirs = Replay(scenario, make_scheduler(scenario.engine_config)).run()
            ours = LeapReplay(scenario, rng=Random(seed) if seed % 2 else None).run()
            found = difference(theirs, ours)
            if found:
                bad += 1
                print(f"seed {seed} {'async' if is_async else 'sync'}: {found[:300]}", flush=True)
            leaps, leapt = leaps + ours.num_leaps, leapt + ours.num_leapt_steps
            real, preemptions = real + ours.num_real_steps, preemptions + ours.num_preemptions
    print(f"{2 * num_seeds:,} runs, {bad} differ: {leaps:,} leaps over {leapt:,} steps, {real:,} steps one by one, "
          f"{preemptions:,} preemptions, {process_time() - start:.0f} CPU s")  # fmt: skip
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
