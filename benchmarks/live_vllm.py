"""Calibrate a live vLLM from outside, replay a trace on it, and print how far the simulation is off.

    python benchmarks/live_vllm.py PYTHON_WITH_VLLM [--rounds 2] [--requests 60] [--url http://host:port]

starts vLLM's CPU build on a tiny local model with random weights (nothing is downloaded), calibrates it through its
API, replays Poisson arrivals on it, and simulates the same requests with the profile that came out. `make live`
installs that vLLM first (3.5 GB).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from kvplan.calibrate.build import build
from kvplan.calibrate.server.client import Server
from kvplan.calibrate.server.loads import measure_server
from kvplan.ground.errors import KvplanError
from kvplan.models.load import load_model
from kvplan.observed.recorded_run import compare_runs, read_run
from kvplan.profiles.timing_profile import step_costs
from kvplan.scenario.schema import parse_scenario
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.simulation.deploy import Setup
from kvplan.simulation.records import write_records
from kvplan.simulation.simulator import simulate
from kvplan.timing.step import ModelStepTime
from kvplan.timing.work import step_work

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408,
    "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32000,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
}  # fmt: skip
ENGINE = {"block_size": 32, "max_num_seqs": 64, "max_num_batched_tokens": 2048, "max_model_len": 8192}
NUM_BLOCKS = 2600
TOKENIZER = """
import json, sys
from tokenizers import Tokenizer, models, pre_tokenizers
t = Tokenizer(models.WordLevel({f"t{i}": i for i in range(32000)}, unk_token="t0"))
t.pre_tokenizer = pre_tokenizers.Whitespace()
t.save("tokenizer.json")
json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0"}, open("tokenizer_config.json", "w"))
"""


@contextmanager
def vllm_server(
    python: str, folder: Path, port: int, tokenizer: str = TOKENIZER, **engine: int
) -> Iterator[str]:
    """Serve a tiny model on this machine's CPU, one thread; stop it at the end."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    subprocess.run([python, "-c", tokenizer], cwd=folder, check=True)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (ENGINE | engine).items()]
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", f"--model={folder}", "--load-format=dummy",
        "--dtype=bfloat16", f"--num-gpu-blocks-override={NUM_BLOCKS}", "--enforce-eager", "--host=127.0.0.1",
        f"--port={port}", *flags,
    ]  # fmt: skip
    quiet = {
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1",
    }  # fmt: skip
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | quiet, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                Server(url, timeout_s=2).facts()
                break
            except KvplanError:
                if process.poll() is not None:
                    sys.exit(f"vLLM ended: {(folder / 'server.log').read_text()[-2000:]}")
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def replay(url: str, num_requests: int, rate: float, path: Path, seed: int = 1) -> None:
    """Send Poisson arrivals of mixed lengths and write what happened to each request."""
    rng, server = random.Random(seed), Server(url)
    model = server.facts().model
    plan, arrival = [], 0.0
    for _ in range(num_requests):
        arrival += rng.expovariate(rate)
        plan.append((arrival, int(rng.lognormvariate(5.5, 0.8)) + 8, int(rng.lognormvariate(4.5, 0.6)) + 8))
    start = time.perf_counter()

    def send(request: tuple[float, int, int]) -> list[float]:
        arrival, prompt, output = request
        time.sleep(max(0.0, start + arrival - time.perf_counter()))
        stream = server.stream(model, [rng.randrange(10, 1000) for _ in range(prompt)], output)
        return [
            stream.sent_s - start, prompt, output,
            1e3 * (stream.token_s[0] - stream.sent_s), 1e3 * (stream.token_s[-1] - stream.sent_s),
        ]  # fmt: skip

    with ThreadPoolExecutor(num_requests) as pool, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arrival_s", "input_tokens", "output_tokens", "ttft_ms", "e2e_ms"])
        writer.writerows(sorted(pool.map(send, plan)))


def main() -> None:
    """Calibrate, replay, simulate, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1.5)
    parser.add_argument("--port", type=int, default=8123)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        with vllm_server(options.python, folder / "model", options.port) as url:
            model = load_model(str(folder / "model"))
            facts = measure_server(folder / "m.jsonl", url, model, "cpu", options.rounds)
            replay(url, options.requests, options.rate, folder / "real.csv")
        assert facts.num_gpu_blocks == NUM_BLOCKS
        print(f"blocks: the server's own {NUM_BLOCKS}, read {facts.num_gpu_blocks}")
        timing = build([folder / "m.jsonl"]).timing
        assert timing is not None
        for error in timing.errors:
            print(
                f"{error.regime:<8} {error.num_points:>4} held out: median {error.median:.1%}, p95 {error.p95:.1%}"
            )
        step_time = ModelStepTime(step_work(model), step_costs(timing.coefficients).costs)
        config = EngineConfig(**ENGINE, num_gpu_blocks=NUM_BLOCKS, async_scheduling=True)
        workload = {
            "arrivals": {"kind": "replay"},
            "trace": {"path": str(folder / "real.csv"), "format": "csv"},
        }
        stand_in = {
            "model": "Qwen/Qwen3-8B",
            "gpu": "h100",
            "workload": workload,
        }  # engine and times are given
        result = simulate(parse_scenario(stand_in), setups={"": Setup(config, step_time, 8192.0, 1)})
        write_records(result.records, folder / "sim.csv")
        print(compare_runs(read_run(folder / "real.csv"), read_run(folder / "sim.csv")))


if __name__ == "__main__":
    main()
