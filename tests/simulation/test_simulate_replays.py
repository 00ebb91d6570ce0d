"""Real traces and a real run: what was measured elsewhere comes out of the simulator.

Reference data lies outside the project (`../shared/truth`); without it these tests are skipped, and say so.
"""

from __future__ import annotations

import csv
import json
from collections import OrderedDict
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import TRUTH
from scipy.interpolate import RegularGridInterpolator

from kvplan.ground.gpu import get_gpu
from kvplan.ground.units import TICKS_PER_S
from kvplan.models.load import load_model
from kvplan.profiles.step_times import make_step_times
from kvplan.scenario.schema import Scenario, StepTimeSpec, parse_scenario
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.simulation.deploy import Setup, StatedStepTime, set_ups
from kvplan.simulation.metrics import latencies
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate
from kvplan.timing.step import NO_KNOT, StepShape

RUN = TRUTH / "serving" / "llmservingsim"
MOONCAKE = TRUTH / "workloads" / "mooncake_conversation_head.jsonl"

needs_run = pytest.mark.skipif(
    not RUN.is_dir(), reason=f"{RUN} is not here: reference data outside the project"
)
needs_mooncake = pytest.mark.skipif(not MOONCAKE.is_file(), reason=f"{MOONCAKE} is not here")


def scenario(folder: Path, workload: dict[str, Any]) -> Scenario:
    found = parse_scenario({"model": "stated", "workload": workload})
    found._folder = folder
    return found


# --- a real run of vLLM 0.19: Llama-3.1-8B on an RTX PRO 6000, 300 requests --------------------

US = TICKS_PER_S // 10**6
LAYERS = 32
HOST_US = 1000.0
"""Host time of a step in vLLM 0.19 (the reference data's README: about 1 ms)."""


class TableStepTime:
    """Step times read off the kernel tables, linear between their points; pure decode as exact integer lines."""

    def __init__(self, folder: Path) -> None:
        table = pytest.importorskip("pyarrow.parquet").read_table
        stem = "llmservingsim_RTXPRO6000_Llama-3.1-8B_tp1_"
        dense, rows, attention = (
            table(folder / f"{stem}{name}.parquet").to_pydict()
            for name in ("dense", "per_sequence", "attention")
        )
        self.dense, self.rows = self._by_layer(dense, "tokens"), self._by_layer(rows, "sequences")
        points = np.array(
            [attention[k] for k in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")]
        ).T
        self.decode = self._grid(points[points[:, 0] == 0][:, 2:])
        self.prefill = self._grid(points[points[:, 2] == 0][:, [0, 1, 4]])
        self.mixed = self._grid(points[(points[:, 0] > 0) & (points[:, 2] > 0)])
        self._lines: dict[int, list[Block]] = {}

    @staticmethod
    def _by_layer(table: dict[str, list[Any]], key: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        layer = np.array(table["layer"])
        return {str(name): (np.array(table[key])[layer == name], np.array(table["time_us"])[layer == name])
                for name in set(table["layer"])}  # fmt: skip

    @staticmethod
    def _grid(points: np.ndarray) -> RegularGridInterpolator:
        """The points whose coordinates are 0 or powers of two form a full grid."""
        powers = {0.0, *(2.0**k for k in range(15))}
        kept = points[[set(row[:-1]) <= powers for row in points]]
        axes = [np.unique(kept[:, i]) for i in range(kept.shape[1] - 1)]
        values = np.full([len(axis) for axis in axes], np.nan)
        values[tuple(np.searchsorted(axis, kept[:, i]) for i, axis in enumerate(axes))] = kept[:, -1]
        assert not np.isnan(values).any()
        return RegularGridInterpolator(axes, values, bounds_error=False, fill_value=None)

    def _layers_us(self, tokens: float, rows: float) -> float:
        def at(table: dict[str, tuple[np.ndarray, np.ndarray]], name: str, x: float) -> float:
            return float(np.interp(x, *table[name]))

        once = at(self.dense, "embedding", tokens) + at(self.dense, "final_layernorm", rows)
        head = at(self.rows, "lm_head", rows) + at(self.rows, "sampler", rows)
        names = (
            "layernorm",
            "layernorm",
            "qkv_proj",
            "rotary_emb",
            "o_proj",
            "gate_up_proj",
            "act_fn",
            "down_proj",
        )
        return HOST_US + once + head + LAYERS * sum(at(self.dense, name, tokens) for name in names)

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step."""
        decodes, context, tokens = shape.num_decodes, shape.decode_context, shape.num_prefill_tokens
        if not tokens:
            a, b, _ = self.decode_line(decodes, context)
            return a + b * context
        past = max(0.0, shape.prefill_attention / tokens - tokens / 2)
        mixed = (tokens, past, decodes, context / max(1, decodes))
        attention = self.mixed(mixed) if decodes else self.prefill((tokens, past))
        return round(
            (self._layers_us(shape.num_tokens, decodes + shape.num_prefills) + LAYERS * float(attention)) * US
        )

    def decode_line(self, num_decodes: int, decode_context: int, num_tokens: int = 0) -> tuple[int, int, int]:
        """Straight between two contexts of the table."""
        lines = self._lines.setdefault(num_decodes, []) or self._make_lines(num_decodes)
        return next(line for line in lines if decode_context < line[2])

    def _make_lines(self, n: int) -> list[Block]:
        knots = [16 << k for k in range(11)]
        us = self._layers_us(n, n) + LAYERS * self.decode([(n, kv) for kv in knots])
        for i in range(len(knots) - 1):
            low, high, t0, t1 = n * knots[i], n * knots[i + 1], round(us[i] * US), round(us[i + 1] * US)
            slope = (t1 - t0) // (high - low)
            self._lines[n].append((t0 - slope * low, slope, high if i + 2 < len(knots) else NO_KNOT))
        return self._lines[n]


@cache
def replayed() -> tuple[Result, list[dict[str, str]]]:
    rows = list(csv.DictReader((RUN / "RTXPRO6000_Llama-3.1-8B.requests.csv").read_text().splitlines()))
    workload = {"trace": {"path": "RTXPRO6000_Llama-3.1-8B.requests.csv", "format": "csv"},
                "arrivals": {"kind": "replay"}, "stop": "length"}  # fmt: skip
    config = EngineConfig(num_gpu_blocks=33_000, max_num_seqs=128, max_num_batched_tokens=2048, max_model_len=131_072,
)  # fmt: skip
    step_time = TableStepTime(TRUTH / "steptime" / "llmservingsim")
    return simulate(scenario(RUN, workload), setups={"": Setup(config, step_time, 131072.0, 1)}), rows


@needs_run
def test_a_real_run_is_replayed() -> None:
    """Mean TPOT and end-to-end latency within 3 %, mean TTFT within 5 % of what vLLM 0.19 did; the error per request
    is below that of the simulator that published the run.
    """
    result, rows = replayed()
    order = np.argsort(result.records["request_id"])
    found = latencies(result.records)
    real = {key: np.array([float(row[f"{key}_ms"]) for row in rows]) for key in ("ttft", "tpot", "e2e")}
    ours = {"ttft": found.ttft[order], "tpot": found.tpot[order], "e2e": found.e2el[order]}
    error = {key: ours[key].mean() / real[key].mean() - 1 for key in real}
    mape = {key: float(np.abs(ours[key] / real[key] - 1).mean()) for key in real}
    peer = peer_mape(rows)
    for key in real:
        print(f"{key}: mean {error[key]:+.2%}, per request {mape[key]:.2%} (peer {peer[key]:.2%})")
    assert abs(error["tpot"]) < 0.03
    assert abs(error["e2e"]) < 0.03
    assert abs(error["ttft"]) < 0.05
    assert mape["e2e"] < peer["e2e"]


def peer_mape(rows: list[dict[str, str]]) -> dict[str, float]:
    """Mean absolute error per request of the simulation published beside the run (nanoseconds in its file)."""
    text = (RUN / "RTXPRO6000_Llama-3.1-8B.peer_sim.csv").read_text()
    peer = {int(row["request id"]): row for row in csv.DictReader(text.splitlines())}
    pairs = [(peer[i], row) for i, row in enumerate(rows) if i in peer]
    columns = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "latency"}
    return {
        key: float(np.mean([abs(float(p[name]) / 1e6 / float(r[f"{key}_ms"]) - 1) for p, r in pairs]))
        for key, name in columns.items()
    }


# --- Mooncake: hits are counted, not modelled ---------------------------------------------------

Block = tuple[int, int, int]
NUM_ROWS = 600
BLOCK = 16


def mooncake(num_gpu_blocks: int) -> Result:
    """The first rows, one at a time, so that the order of touching is the order of the trace."""
    workload = {"trace": {"path": MOONCAKE.name, "format": "mooncake", "limit": NUM_ROWS}, "stop": "length",
                "max_tokens": 1, "arrivals": {"kind": "constant", "rate": 1e-3}}  # fmt: skip
    config = EngineConfig(num_gpu_blocks=num_gpu_blocks, max_num_seqs=1, max_num_batched_tokens=8192,
                          max_model_len=200_000, block_size=BLOCK)  # fmt: skip
    time = StatedStepTime.of(StepTimeSpec(fixed_us=10.0))
    return simulate(scenario(MOONCAKE.parent, workload), setups={"": Setup(config, time, 1.0, 1)})


@cache
def prompts() -> list[tuple[list[Block], int]]:
    """Every request's full blocks, named by their content: the chain of hash ids up to the block, and its place."""
    found = []
    for line in MOONCAKE.read_text().splitlines()[:NUM_ROWS]:
        row = json.loads(line)
        chain, blocks = 0, []
        for i in range(row["input_length"] // BLOCK):
            at, offset = divmod(i * BLOCK, 512)
            if offset == 0 or i == 0:
                chain = hash((chain, row["hash_ids"][at]))
            blocks.append((chain, offset, i))
        found.append((blocks, row["input_length"]))
    return found


@needs_mooncake
def test_mooncake_hits_without_eviction_are_a_direct_count() -> None:
    """With room for everything, a request hits the longest beginning that any earlier one had."""
    seen: set[Block] = set()
    expected = []
    for blocks, length in prompts():
        most = (length - 1) // BLOCK
        hits = next((i for i, block in enumerate(blocks[:most]) if block not in seen), min(most, len(blocks)))
        expected.append(hits * BLOCK)
        seen.update(blocks)
    found = mooncake(num_gpu_blocks=1_000_000)
    order = np.argsort(found.records["request_id"])
    assert found.records["hit_tokens"][order].tolist() == expected
    assert 0.1 < sum(expected) / found.records["prompt_tokens"].sum() < 0.9


@needs_mooncake
@pytest.mark.parametrize("num_gpu_blocks", [9001, 40_001])
def test_mooncake_hits_under_eviction_are_a_naive_lru(num_gpu_blocks: int) -> None:
    """A block-by-block LRU over copies: blocks are taken unhashed ones first, then the least recently released;
    a request releases its blocks deepest first.
    """
    free: OrderedDict[int, Block] = OrderedDict()
    copies: dict[Block, list[int]] = {}
    unhashed = num_gpu_blocks - 1
    ids = count()
    expected = []
    for blocks, length in prompts():
        most = min((length - 1) // BLOCK, len(blocks))
        hits = next((i for i, block in enumerate(blocks[:most]) if not copies.get(block)), most)
        held = [copies[block][0] for block in blocks[:hits]]
        for copy in held:
            del free[copy]
        need = -(-length // BLOCK) - hits
        taken = min(need, unhashed)
        unhashed -= taken
        for _ in range(need - taken):
            victim, block = free.popitem(last=False)
            copies[block].remove(victim)
        own = [(next(ids), block) for block in blocks[hits:]]
        for copy, block in own:
            copies.setdefault(block, []).append(copy)
        unhashed += need - len(own)
        for copy, block in [*reversed(own), *reversed(list(zip(held, blocks, strict=False)))]:
            free[copy] = block
        expected.append(hits * BLOCK)
    found = mooncake(num_gpu_blocks)
    order = np.argsort(found.records["request_id"])
    assert found.records["hit_tokens"][order].tolist() == expected
    assert found.totals.preemptions == 0


def test_lengths_that_differ_make_attention_longer() -> None:
    """A profile's `step.skew` slows the decode attention of simulated batches by its share, and nothing else."""
    spec = {"model": "meta-llama/Llama-3.1-8B", "gpu": "rtx-4090", "engine": {"max_model_len": 8192}}
    scenario = parse_scenario(spec)
    setup = set_ups(scenario)[""]
    plain = make_step_times(load_model(spec["model"]), get_gpu("rtx-4090"), scenario.engine).time
    skew = plain.costs.skew
    assert 0.02 <= skew <= 0.13
    for num, context in ((8, 8_000), (64, 64_000)):
        a, b, _ = plain.decode_line(num, context)
        slower, more, _ = setup.step_time.decode_line(num, context)
        assert more / b == pytest.approx(1 + skew, rel=1e-3)
        assert slower == pytest.approx(a, rel=0.05)
