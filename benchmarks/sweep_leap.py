"""Compare the leap with the step-by-step scheduler on many random workloads: decisions, blocks, hits, evictions, ends.

    python benchmarks/sweep_leap.py [NUM_SEEDS [FIRST_SEED]] [--drafts]     sync and async; exits 1 if any differs

The default suite tries a few hundred; rules about copies of equal blocks show on one workload in thousands.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from random import Random
from time import process_time

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from draft_scenarios import drafted_scenario
from leap_scenarios import compare, random_scenario

from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.leap.allowed import why_not


def main(num_seeds: int, first_seed: int, drafts: bool) -> int:
    """Print each seed that differs, and totals."""
    start, bad = process_time(), 0
    runs = leaps = leapt = steps = preemptions = 0
    for seed in range(first_seed, first_seed + num_seeds):
        row = (drafted_scenario if drafts else random_scenario)(Random(seed))
        for is_async in (False, True):
            scenario = VLLMScenario(**row | {"async_scheduling": is_async})
            if why_not(scenario.engine_config):
                continue
            runs += 1
            leap = LeapReplay(scenario, rng=Random(seed) if seed % 2 else None)
            found = compare(scenario, leap)
            if found:
                bad += 1
                print(f"seed {seed} {'async' if is_async else 'sync'}: {found[:300]}", flush=True)
            leaps, leapt, steps = leaps + leap.num_leaps, leapt + leap.num_leapt_steps, steps + leap.step
            preemptions += sum(request.num_preemptions for request in leap.requests.values())
    print(f"{runs:,} runs, {bad} differ: {leaps:,} leaps over {leapt:,} of {steps:,} steps, "
          f"{preemptions:,} preemptions, {process_time() - start:.0f} CPU s")  # fmt: skip
    return int(bad > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("num_seeds", nargs="?", type=int, default=2000)
    parser.add_argument("first_seed", nargs="?", type=int, default=0)
    parser.add_argument("--drafts", action="store_true", help="speculative decoding")
    told = parser.parse_args()
    sys.exit(main(told.num_seeds, told.first_seed, told.drafts))
