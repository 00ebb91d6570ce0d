"""Step times of a live engine, from bounded loads of streamed completions.

A load decodes alone (decode steps), a lone prompt gives a prefill step, a prompt sent among decoders a mixed one.
Prompts are random token ids, so no prefix cache answers for them; nothing on the server is changed.
"""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from kvplan.calibrate.measurements import SCHEMA_VERSION
from kvplan.calibrate.server.client import CacheFacts, Server, Stream
from kvplan.calibrate.session import MeasurementSession, Point, Report, no_report, open_session
from kvplan.ground.errors import KvplanError
from kvplan.models.spec import ModelSpec


class ServerLoad(NamedTuple):
    """One bounded load: `concurrency` requests of one shape sent at once."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int


class Injection(NamedTuple):
    """One prompt sent while `concurrency` streams decode: a mixed step, seen in the decoders' longest gap."""

    concurrency: int
    context_tokens: int
    prompt_tokens: int


INJECTIONS = tuple(
    Injection(concurrency, context, prompt)
    for concurrency in (4, 16)
    for context in (64, 1024)
    for prompt in (16, 256, 1024)
)
"""12 injections of at most 1,024 tokens, one chunk under any common token budget; 132 requests."""

LOADS = tuple(
    ServerLoad(concurrency, prompt, 48)
    for concurrency in (1, 2, 4, 8, 16, 32)
    for prompt in (64, 512, 2048, 8192)
)
"""At most 24 loads, 252 requests, 12,096 output tokens."""


def possible_loads(facts: CacheFacts) -> list[ServerLoad]:
    """The loads that fit: within the model's length and half of the pool, so that nothing is preempted."""
    pool = facts.block_size * facts.num_gpu_blocks // 2
    return [
        load
        for load in LOADS
        if load.prompt_tokens + load.output_tokens <= facts.max_model_len
        and load.concurrency * (load.prompt_tokens + load.output_tokens) <= pool
    ]


def _prompt(num_tokens: int, rng: random.Random) -> list[int]:
    return [rng.randrange(10, 1000) for _ in range(num_tokens)]


def send_load(
    server: Server,
    facts: CacheFacts,
    load: ServerLoad,
    rng: random.Random,
    started: Future[float] | None = None,
) -> list[Stream]:
    """Send one load, all requests at once, and wait for every stream.

    `started` gets the seconds between two tokens once every stream has two, or the error that ended the load.
    """
    prompts = [_prompt(load.prompt_tokens, rng) for _ in range(load.concurrency)]
    gaps: list[float] = []

    def second_token(gap: float) -> None:
        gaps.append(gap)
        if started is not None and len(gaps) == load.concurrency:
            started.set_result(min(gaps))  # later ones hold other prompts' chunks

    def send(prompt: list[int]) -> Stream:
        return server.stream(facts.model, prompt, load.output_tokens, second_token)

    try:
        with ThreadPoolExecutor(load.concurrency) as pool:
            return list(pool.map(send, prompts))
    except KvplanError as error:
        if started is not None and not started.done():
            started.set_exception(error)
        raise


def decode_row(load: ServerLoad, streams: list[Stream]) -> dict[str, Any] | None:
    """The pure decode steps of a load: the window in which every stream is decoding, tokens counted in it.

    Time of a step = window / steps, a step being one token of every stream; None if they never overlap.
    """
    start = max(s.token_s[0] for s in streams)
    end = min(s.token_s[-1] for s in streams)
    inside = [sum(start < t <= end for t in s.token_s) for s in streams]
    steps = min(inside)
    if end <= start or steps < 5:
        return None
    emitted = median([sum(t <= start for t in s.token_s) for s in streams])
    context = load.prompt_tokens + emitted + steps / 2
    gaps = sorted(b - a for s in streams for a, b in pairwise(s.token_s) if a >= start)
    quarter = len(gaps) // 4
    time_s = (end - start) / (sum(inside) / len(inside))
    return {
        "op": "decode_step", "num_tokens": load.concurrency, "num_decodes": load.concurrency,
        "decode_context": round(load.concurrency * context), "time_s": time_s, "num_repeats": steps,
        "spread": round((gaps[-1 - quarter] - gaps[quarter]) / time_s, 4),
    }  # fmt: skip


def prefill_row(load: ServerLoad, streams: list[Stream]) -> dict[str, Any] | None:
    """A lone prompt's time to its first token: one prefill step, network and host included."""
    if load.concurrency != 1:
        return None
    stream = streams[0]
    tokens = stream.prompt_tokens
    return {
        "op": "prefill_step", "num_tokens": tokens, "num_prefill_tokens": tokens, "num_prefills": 1,
        "prefill_attention": tokens * tokens / 2, "time_s": stream.token_s[0] - stream.sent_s, "num_repeats": 1,
    }  # fmt: skip


def possible_injections(facts: CacheFacts) -> list[Injection]:
    """The injections that fit the model's length and half of the pool."""
    pool = facts.block_size * facts.num_gpu_blocks // 2
    return [
        case
        for case in INJECTIONS
        if max(case.context_tokens + 64, case.prompt_tokens + 2) <= facts.max_model_len
        and case.concurrency * (case.context_tokens + 64) + case.prompt_tokens <= pool
    ]


def send_injection(
    server: Server, facts: CacheFacts, case: Injection, rng: random.Random
) -> tuple[list[Stream], Stream]:
    """Start the decoders, send the prompt once all have tokens to spare, and wait for everybody."""
    load = ServerLoad(case.concurrency, case.context_tokens, 64)

    def inject() -> Stream:
        lone = decoders_started.result()
        time.sleep(8 * max(1e-3, lone))
        return server.stream(facts.model, _prompt(case.prompt_tokens, rng), 2)

    decoders_started: Future[float] = Future()
    with ThreadPoolExecutor(2) as pool:
        background = pool.submit(send_load, server, facts, load, rng, decoders_started)
        lone = pool.submit(inject)
        return background.result(), lone.result()


def mixed_row(case: Injection, decoders: list[Stream], lone: Stream) -> dict[str, Any] | None:
    """The mixed step: the longest gap of each decoder between the prompt's sending and its first token."""
    first = lone.token_s[0]
    gaps, context = [], 0
    for stream in decoders:
        around = [
            (b - a, i) for i, (a, b) in enumerate(pairwise(stream.token_s)) if b >= lone.sent_s and a <= first
        ]
        if not around:
            return None  # this stream was over before the prompt came
        gap, emitted = max(around)
        gaps.append(gap)
        context += case.context_tokens + emitted + 1
    return {
        "op": "mixed_step", "num_tokens": case.concurrency + case.prompt_tokens, "num_decodes": case.concurrency,
        "decode_context": context, "num_prefill_tokens": case.prompt_tokens, "num_prefills": 1,
        "prefill_attention": case.prompt_tokens**2 / 2, "time_s": median(gaps), "num_repeats": 1,
        "spread": round((max(gaps) - min(gaps)) / median(gaps), 4),
    }  # fmt: skip


def observe(
    server: Server,
    facts: CacheFacts,
    session: MeasurementSession,
    subject: Point,
    rounds: int = 3,
    seed: int = 0,
    report: Report = no_report,
) -> int:
    """Send every load that fits `rounds` times and append a row a step shape; return how many loads were sent.

    `subject` names the served model in every row. Rows are written as they come: a server that stops answering
    costs only what was not yet sent.
    """
    rng = random.Random(seed)
    cases: list[ServerLoad | Injection] = [*possible_loads(facts), *possible_injections(facts)]
    keys = {json.dumps([type(load).__name__, load, r]): (load, r) for r in range(rounds) for load in cases}
    todo = {key: case for key, case in keys.items() if key not in session.done}
    if todo:
        server.stream(facts.model, _prompt(32, rng), 8)  # warm-up, not kept
    for number, (key, (load, round_)) in enumerate(todo.items()):
        report("server load", number, len(todo))
        for row in _rows(server, facts, load, rng):
            session.append({**row, **subject, "round": round_})
        session.append({"op": "done", "key": key})
        session.done.add(key)
    report("", len(todo), len(todo))
    return len(todo)


def _rows(
    server: Server, facts: CacheFacts, load: ServerLoad | Injection, rng: random.Random
) -> list[dict[str, Any]]:
    """The step rows that one load gives."""
    if isinstance(load, Injection):
        rows = [mixed_row(load, *send_injection(server, facts, load, rng))]
    else:
        streams = send_load(server, facts, load, rng)
        rows = [decode_row(load, streams), prefill_row(load, streams)]
    return [row for row in rows if row is not None]


def measure_server(
    out: Path, url: str, model: ModelSpec, gpu: str, rounds: int = 3, report: Report = no_report
) -> CacheFacts:
    """Measure a live vLLM from outside into `out`; `model` is what it serves, `gpu` the card it runs on.

    A server that stops answering ends it; the rows that came before stay in `out`, and another call goes on there.
    """
    server = Server(url)
    facts = server.facts()
    machine = {
        "op": "machine",
        "schema_version": SCHEMA_VERSION,
        "machine": f"{facts.model} on {gpu}",
        "gpu": gpu,
        "engine": "vllm",
        "engine_version": facts.engine_version,
        "date": time.strftime("%Y-%m-%d"),
        "seen_by_client": True,
        **{k: v for k, v in facts._asdict().items() if k not in ("model", "engine_version")},
    }
    session = open_session(out, machine)
    before = len(session.done)
    try:
        observe(server, facts, session, subject_of(model), rounds, report=report)
    except KvplanError as error:
        kept = f"{len(session.done)} loads are in {out}, run it again to go on"
        raise KvplanError(f"{error}; {kept}" if len(session.done) > before else str(error)) from None
    return facts


def subject_of(model: ModelSpec) -> dict[str, Any]:
    """Row fields that tell a fit which model was served: its name, or its shape where it is not bundled."""
    if model.source.startswith("bundled"):
        return {"model": model.name}
    kinds = set(model.layers)
    if len(kinds) != 1:
        raise KvplanError(
            f"{model.name}: calibrating a server needs a bundled model, or one whose layers are all alike"
        )
    [layer] = kinds
    attention, mlp = layer.attention, layer.mlp
    return {
        "model": model.name,
        "num_layers": len(model.layers),
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "intermediate_size": mlp.intermediate_size,
        "num_matrices": mlp.num_matrices,
        "num_experts": mlp.num_experts,
        "experts_per_token": mlp.experts_per_token,
        "num_heads": attention.num_heads,
        "num_kv_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
    }
