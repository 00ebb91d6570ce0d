"""A real scheduler's batches: transformers' continuous batching over random weights, every batch timed as it ran.

Two runs of Poisson arrivals under KV pressure, written to a file of their own (`batches_path`): transformers is an
engine, and its constants are not those of the kernels timed beside it. Run 0 is there to fit them, run 1 is marked
`held_out`. Imports transformers only when asked to run; a version whose interface differs costs one line.
"""

from __future__ import annotations

import inspect
import logging
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from statistics import median
from threading import Event
from typing import Any, NamedTuple

import torch

from kvplan.calibrate.measure.device import free_bytes, machine_facts, release
from kvplan.calibrate.measure.grids import Grid, Serving, model_facts, weight_bytes
from kvplan.calibrate.measure.probes import one_line
from kvplan.calibrate.session import MeasurementSession, Point, Report, batches_path, no_report, open_session

RUNS = 2
"""Run 0 to fit, run 1 to predict."""
PAGE = 32
TIMES = ("time_s", "forward_s")
UNLIKE = (ImportError, AttributeError, TypeError, ValueError, KeyError, RuntimeError)
"""What a transformers of another interface, or one without room on the card, raises."""


class BatchedRequest(NamedTuple):
    """One request: when it arrives (in batches run so far), its prompt's tokens and how many it asks for."""

    arrival: float
    prompt_tokens: int
    output_tokens: int


def draw_requests(serving: Serving, seed: int) -> list[BatchedRequest]:
    """Poisson arrivals with lognormal lengths, each cut to four times its median."""
    rng, clock, requests = random.Random(seed), 0.0, []
    for _ in range(serving.num_requests):
        clock += rng.expovariate(1 / serving.gap_batches)
        prompt, output = (
            max(2, min(4 * middle, round(rng.lognormvariate(math.log(middle), width))))
            for middle, width in ((serving.prompt_tokens, 0.8), (serving.output_tokens, 0.6))
        )
        requests.append(BatchedRequest(clock, prompt, output))
    return requests


def batch_shape(parts: Iterable[tuple[int, int]]) -> Point:
    """A batch from (tokens attended to before, tokens computed) of each sequence in it; one token is a decode."""
    parts = list(parts)
    chunks = [(past, new) for past, new in parts if new > 1]
    decodes = [past + 1 for past, new in parts if new == 1]
    shape: Point = {
        "num_tokens": sum(new for _, new in parts), "num_decodes": len(decodes), "decode_context": sum(decodes),
        "num_prefill_tokens": sum(new for _, new in chunks), "num_prefills": len(chunks),
        "prefill_attention": sum(new * (past + new / 2) for past, new in chunks),
        "kv_tokens": sum(past + new for past, new in parts),
    }  # fmt: skip
    op = "mixed_step" if decodes and chunks else "decode_step" if decodes else "prefill_step"
    return {"op": op, **shape}


@dataclass(slots=True)
class Recorder:
    """Stands around a processor's three calls of a batch: hands in requests when due, notes shape and time."""

    processor: Any
    """transformers' ContinuousBatchProcessor: prepare_next_batch, _generation_step, update_batch."""
    submit: Callable[[BatchedRequest], None]
    waiting: list[BatchedRequest]
    device: torch.device
    deadline: float
    """On `time.perf_counter`'s clock; no request is handed in after it."""
    rows: list[Point] = field(default_factory=list)
    idle: Event = field(default_factory=Event)
    """Set when everything handed in has been answered, or the deadline passed."""
    error: Exception | None = None
    calls: tuple[Any, Any, Any] = ()  # type: ignore[assignment]
    began: float = 0.0
    shape: Point = field(default_factory=dict)
    forward_s: float = 0.0

    def install(self) -> None:
        """Put this recorder's calls in the place of the processor's own."""
        p = self.processor
        self.calls = p.prepare_next_batch, p._generation_step, p.update_batch
        p.prepare_next_batch, p._generation_step, p.update_batch = self.prepare, self.step, self.update

    def prepare(self, *args: Any) -> bool:
        """Hand in what is due, then let the scheduler choose a batch: here its time begins."""
        late = time.perf_counter() > self.deadline
        busy = self.processor.has_pending_requests()
        if self.waiting and not busy and not late:
            self.submit(self.waiting.pop(0))
        while self.waiting and self.waiting[0].arrival <= len(self.rows) and not late:
            self.submit(self.waiting.pop(0))
        self.began = self._now()
        found = bool(self._kept(self.calls[0], *args))
        if late or (not found and not self.waiting):
            self.idle.set()
        return found

    def step(self, *args: Any) -> None:
        """Note who is in the batch, run it."""
        batch = self.processor.inputs_and_outputs.requests_in_batch
        self.shape = batch_shape(
            (one.state.position_offset - one.query_length, one.query_length) for one in batch
        )
        before = self._now()
        self._kept(self.calls[1], *args)
        self.forward_s = self._now() - before

    def update(self, *args: Any) -> None:
        """Let the tokens be taken in: here the batch's time ends."""
        self._kept(self.calls[2], *args)
        self.shape["num_waiting"] = len(self.processor.scheduler.waiting_requests)
        self.rows.append({**self.shape, "time_s": self._now() - self.began, "forward_s": self.forward_s})

    def _kept(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call; keep what it raises, since the loop around it only logs that."""
        try:
            return call(*args)
        except Exception as error:
            self.error = error
            raise

    def _now(self) -> float:
        """Seconds, with nothing left running on the card; on a CPU those of this thread, as other probes count."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.thread_time()


def engine_facts(serving: Serving, device: torch.device) -> Point:
    """The machine row of the batches' file: transformers, its attention, the model in every row."""
    import transformers  # type: ignore[import-not-found,unused-ignore]

    return machine_facts(device) | {
        "engine": "transformers", "engine_version": transformers.__version__, "torch": torch.__version__,
        "attention": attention_name(device), "enforce_eager": device.type == "cuda", "async_scheduling": False,
        "pool_tokens": serving.pool_tokens, "max_batch_tokens": serving.max_batch_tokens,
        "defaults": model_facts(serving.model),
    }  # fmt: skip


def attention_name(device: torch.device) -> str:
    """flash_attention_2 where that package is installed beside a GPU; else sdpa under one mask over the whole batch."""
    return "flash_attention_2" if device.type == "cuda" and find_spec("flash_attn") else "sdpa"


class Engine:
    """A model of random weights and the settings to serve it with; `run` serves one list of requests afresh."""

    def __init__(self, serving: Serving, device: torch.device) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
        self.serving, self.device = serving, device
        self.options = transformers.ContinuousBatchingConfig(**batching_options(
            serving, {f.name for f in fields(transformers.ContinuousBatchingConfig)}
        ))  # fmt: skip
        self.generation = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        name = attention_name(device)
        if name == "sdpa" and not hasattr(self.options, "auto_switch_to_flash"):
            name = "paged|sdpa"  # its spelling before 5.18
        with device:
            self.model = transformers.AutoModelForCausalLM.from_config(
                transformers.LlamaConfig(**llama_config(serving)),
                dtype=torch.bfloat16,
                attn_implementation=name,
            )
        self.run(draw_requests(serving, RUNS)[:4])  # warm-up, not kept

    def run(self, requests: list[BatchedRequest]) -> Recorder:
        """Serve these requests in transformers' own loop and thread; every batch is in the recorder's rows."""
        manager = self.model.init_continuous_batching(self.generation, self.options)
        rng, vocab = random.Random(len(requests)), self.serving.model.vocab_size

        def submit(request: BatchedRequest) -> None:
            prompt = [rng.randrange(vocab) for _ in range(request.prompt_tokens)]
            manager.add_request(prompt, max_new_tokens=request.output_tokens)

        manager.warmup()
        deadline = time.perf_counter() + self.serving.budget_s
        recorder = Recorder(manager.batch_processor, submit, list(requests), self.device, deadline)
        recorder.install()
        manager.start()
        while manager.is_running() and not recorder.idle.wait(0.05):
            pass
        if not recorder.idle.is_set() and recorder.error is None:
            recorder.error = RuntimeError("transformers' loop ended before the requests did")
        manager.stop(block=True, timeout=30.0, **({"hard_stop": True} if _takes_hard_stop(manager) else {}))
        return recorder


def _takes_hard_stop(manager: Any) -> bool:
    return "hard_stop" in inspect.signature(manager.stop).parameters


def batching_options(serving: Serving, known: set[str]) -> dict[str, Any]:
    """Settings of a run in the words that this version of transformers knows."""
    page = "page_size" if "page_size" in known else "block_size"
    wanted = {
        page: PAGE, "num_blocks": serving.pool_tokens // PAGE, "max_batch_tokens": serving.max_batch_tokens,
        "use_cuda_graph": False, "use_async_batching": False, "allow_block_sharing": False,
        "auto_switch_to_flash": False, "max_blocks_per_request": 0,
    }  # fmt: skip
    return {name: value for name, value in wanted.items() if name in known}


def llama_config(serving: Serving) -> dict[str, Any]:
    """transformers' names of a model's shape."""
    model, shape = serving.model, serving.model.attention
    return {
        "num_hidden_layers": model.num_layers, "hidden_size": model.hidden_size, "vocab_size": model.vocab_size,
        "intermediate_size": model.intermediate_size, "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads, "head_dim": shape.head_dim, "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    }  # fmt: skip


def measure_batching(
    grid: Grid,
    session: MeasurementSession,
    device: torch.device,
    report: Report = no_report,
    deadline: float = math.inf,
) -> str:
    """Run what is not in the file yet; return what kept it from running, in one line, or nothing.

    Runs share what is left until `deadline` (on `time.monotonic`'s clock), at most `Serving.budget_s` each.

    Rows are written at the end, also of runs that broke off; only whole runs are not run again.
    """
    try:
        if find_spec("transformers") is None:
            raise ImportError("transformers is not installed")
        serving = fitting(grid.serving, free_bytes(device))
        file = open_session(batches_path(session.path), engine_facts(serving, device))
        todo = [run for run in range(RUNS) if _key(grid, run) not in file.done]
        if todo:
            left = (deadline - time.monotonic()) / (len(todo) * serving.repeats + 1)  # one to warm up
            serving = serving._replace(budget_s=min(serving.budget_s, left))
            _serve(Engine(serving, device), replace(grid, serving=serving), todo, file, report)
        note = ""
    except UNLIKE as error:
        why = one_line(error).removeprefix("ImportError: ")
        note = f"batches of transformers not measured: {why}"
        _note(session, note)
    release(device)
    return note


def fitting(serving: Serving, free_bytes: float) -> Serving:
    """The same load with so few layers that weights and KV take at most 70 % of the free memory."""
    model = serving.model
    kv = serving.pool_tokens * model.attention.kv_bytes("bfloat16")
    while model.num_layers > 1 and weight_bytes(model, 1) + model.num_layers * kv > 0.7 * free_bytes:
        model = model._replace(num_layers=model.num_layers // 2)
    return serving._replace(model=model)


def _key(grid: Grid, run: int) -> str:
    return f"batching {grid.name} {run}"


def _serve(engine: Engine, grid: Grid, todo: list[int], file: MeasurementSession, report: Report) -> None:
    """All repetitions of the runs in turn, then their rows; raises what ended a run, after writing."""
    taken: dict[int, list[list[Point]]] = {run: [] for run in todo}
    cases = [run for _ in range(grid.serving.repeats) for run in todo]
    failed: dict[int, Exception] = {}
    for number, run in enumerate(cases):
        report("batches of transformers", number, len(cases))
        recorder = engine.run(draw_requests(grid.serving, run))
        taken[run].append(recorder.rows)
        if recorder.error is not None:
            failed[run] = recorder.error
            break
    for run, repeats in taken.items():
        for row in typical(repeats):
            depth = grid.serving.model.num_layers  # another attempt may find room for another depth
            file.append({**row, "num_layers": depth, "run": run, "held_out": run == RUNS - 1})
        if run not in failed and len(repeats) == grid.serving.repeats:
            file.append({"op": "done", "key": _key(grid, run)})
            file.done.add(_key(grid, run))
    report("", len(cases), len(cases))
    for error in failed.values():
        raise error


def typical(repeats: list[list[Point]]) -> list[Point]:
    """One row per batch, its times the medians over the repetitions that ran the same batch.

    The clock of arrivals counts batches and answers have fixed lengths, so repetitions run the same batches.
    """
    rows: list[Point] = []
    for i in range(max(map(len, repeats), default=0)):
        row = next(some[i] for some in repeats if len(some) > i)
        same = [some[i] for some in repeats if len(some) > i and _shape(some[i]) == _shape(row)]
        times = {name: median([float(one[name]) for one in same]) for name in TIMES}
        rows.append({**row, **times, "num_repeats": len(same)})
    return rows


def _shape(row: Point) -> Point:
    return {name: value for name, value in row.items() if name not in TIMES}


def _note(session: MeasurementSession, note: str) -> None:
    """Leave the reason in the main file, once."""
    if note not in session.done:
        session.append(
            {"op": "batching", "machine": session.machine["machine"], "skipped": note, "key": note}
        )
        session.done.add(note)
