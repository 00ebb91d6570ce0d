"""What vLLM's API server takes before and after its engine: HTTP, prompt text to tokens, tokens to text, the way back.

    python benchmarks/live_frontend.py PYTHON_WITH_VLLM [--requests 30]

starts vLLM's CPU build on a tiny local model with a byte-level BPE tokenizer of 32,000 entries, trained on the
standard library (nothing is downloaded), and sends prompts one at a time. Time outside the engine = time to the first
token at the client, less the queue and prefill time that the engine reports in /metrics. Prints it by prompt length,
the server process's own CPU time beside it. Then many clients at once, for what they take of the server's CPU: requests
of one token with short and long prompts, and answers of 300 tokens, streamed and not, with the pieces that streams
came in. Last a scenario's `frontend` (`catalog/api_servers.yaml`).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.live_vllm import vllm_server
from kvplan.calibrate.server.client import Server, parse_metrics

STREAMS, ANSWER = (32, 64, 128), 300
BURST = 64
WORDS = (100, 800, 3200, 6400)
ENGINE_SECONDS = ("vllm:request_queue_time_seconds_sum", "vllm:request_prefill_time_seconds_sum")
TOKENIZER = """
import glob, json, os
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
files = sorted(glob.glob(os.path.join(os.path.dirname(os.__file__), "*.py")))
t = Tokenizer(models.BPE())
t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
t.train(files, trainers.BpeTrainer(vocab_size=31000, special_tokens=["<unk>"],
                                   initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
t.save("tokenizer.json")
json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}, open("tokenizer_config.json", "w"))
"""


class Outside(NamedTuple):
    """Means over requests of one length, in seconds."""

    prompt_tokens: int
    wall_s: float
    cpu_s: float


@contextmanager
def completion(url: str, model: str, prompt: str, **more: object) -> Iterator[http.client.HTTPResponse]:
    """The streamed answer to a prompt, sent when entered."""
    parts = urlsplit(url)
    body = {"model": model, "prompt": prompt, "stream": True, "ignore_eos": True, **more}
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        yield connection.getresponse()


def first_token(url: str, model: str, prompt: str) -> tuple[float, int]:
    """Seconds to the first streamed token, and the prompt's tokens as the server counts them."""
    tokens, first, start = 0, 0.0, time.perf_counter()
    with completion(url, model, prompt, max_tokens=2, stream_options={"include_usage": True}) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - start
                usage = json.loads(line[6:]).get("usage")
                tokens = usage["prompt_tokens"] if usage else tokens
    return first, tokens


def engine_s(url: str) -> float:
    """Seconds that all requests so far spent in the engine's queue and prefill."""
    return sum(m.value for m in parse_metrics(Server(url).get("/metrics")) if m.name in ENGINE_SECONDS)


def cpu_s(port: int) -> float:
    """CPU seconds of the API server's process so far (Linux)."""
    total = 0.0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"--port={port}".encode() in (path / "cmdline").read_bytes():
                fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            continue
    return total


def measure(url: str, port: int, num_requests: int) -> Iterator[Outside]:
    """Send prompts of each length, one after another."""
    rng, model = random.Random(0), Server(url).facts().model
    words = sorted({w for w in __doc__.split() if w.isalpha()})
    for length in WORDS:
        prompts = [" ".join(rng.choices(words, k=length)) for _ in range(num_requests + 1)]
        first_token(url, model, prompts.pop())
        engine, cpu = engine_s(url), cpu_s(port)
        seen = [first_token(url, model, prompt) for prompt in prompts]
        cpu, engine = cpu_s(port) - cpu, engine_s(url) - engine
        wall = sum(s for s, _ in seen) - engine
        yield Outside(round(np.mean([n for _, n in seen])), wall / num_requests, cpu / num_requests)


def pieces(url: str, model: str, prompt: str, num_tokens: int, streamed: bool) -> int:
    """Read one answer to its end; return in how many pieces it came."""
    with completion(url, model, prompt, max_tokens=num_tokens, stream=streamed) as answer:
        lines = list(answer)
    return sum(line.startswith(b"data: {") for line in lines) if streamed else 1


class Together(NamedTuple):
    """Many clients at once: the server's CPU seconds of each, and the pieces that all their answers came in."""

    cpu_s: float
    num_pieces: int


def together(url: str, port: int, clients: int, words: int, num_tokens: int, streamed: bool) -> Together:
    """So many requests at once, each of its own prompt."""
    model, vocabulary = Server(url).facts().model, sorted({w for w in __doc__.split() if w.isalpha()})
    prompts = [" ".join(random.Random(i).choices(vocabulary, k=words)) for i in range(clients)]
    before = cpu_s(port)
    with ThreadPoolExecutor(clients) as pool:
        found = sum(pool.map(lambda prompt: pieces(url, model, prompt, num_tokens, streamed), prompts))
    return Together((cpu_s(port) - before) / clients, found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python")
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--port", type=int, default=8124)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        server = vllm_server(
            options.python,
            Path(name),
            options.port,
            TOKENIZER,
            max_model_len=16384,
            max_num_seqs=max(STREAMS),
        )
        with server as url:
            found = list(measure(url, options.port, options.requests))
            short, long = (together(url, options.port, BURST, n, 1, True) for n in (WORDS[0], WORDS[2]))
            answers = [
                [together(url, options.port, clients, 20, ANSWER, streamed) for streamed in (False, True)]
                for clients in STREAMS
            ]
    for one in found:
        print(f"{one.prompt_tokens:>6,} prompt tokens: {1e3 * one.wall_s:5.1f} ms outside the engine, "
              f"{1e3 * one.cpu_s:5.1f} ms of CPU")  # fmt: skip
    token_s = (long.cpu_s - short.cpu_s) / (found[2].prompt_tokens - found[0].prompt_tokens)
    request_s = short.cpu_s - token_s * found[0].prompt_tokens
    outputs, sends = [], []
    for clients, (whole, streamed) in zip(STREAMS, answers, strict=True):
        outputs.append((whole.cpu_s - request_s) / ANSWER)
        sends.append((streamed.cpu_s - whole.cpu_s) * clients / streamed.num_pieces)
        per_piece = clients * ANSWER / streamed.num_pieces
        print(f"{clients:>6,} answers at once: {1e6 * outputs[-1]:5.1f} us of CPU a token, streamed "
              f"{1e6 * sends[-1]:5.1f} us more a piece of {per_piece:.2f} tokens")  # fmt: skip
    hops_s = found[0].wall_s - short.cpu_s
    print(f"frontend: {{request_ms: {1e3 * request_s:.1f}, per_1k_tokens_ms: {1e6 * token_s:.2f}, "
          f"latency_ms: {1e3 * hops_s:.1f}, output_us: {1e6 * np.mean(outputs):.0f}, "
          f"send_us: {1e6 * np.mean(sends):.0f}}}")  # fmt: skip


if __name__ == "__main__":
    main()
