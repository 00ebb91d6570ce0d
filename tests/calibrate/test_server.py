"""A live engine seen from outside, played from a recorded exchange with vLLM 0.32.0 (a tiny local model, CPU)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest
from places import FIXTURES

from kvplan.calibrate.server import client, loads
from kvplan.calibrate.server.client import Server, Stream, parse_metrics
from kvplan.calibrate.server.loads import Injection, ServerLoad, measure_server
from kvplan.calibrate.session import open_session
from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.models.load import load_model

EXCHANGE = json.loads((FIXTURES / "vllm_exchange.json").read_text())


class Recorded(BaseHTTPRequestHandler):
    """Answers as the recorded server did, at the recorded moments."""

    exchange: dict[str, Any] = EXCHANGE
    streams = {n: cycle(s) for n, s in EXCHANGE["streams"].items()}
    lock = Lock()

    def do_GET(self) -> None:
        answer = self.exchange.get(f"GET {self.path}")
        body = "\n".join(answer) if isinstance(answer, list) else json.dumps(answer)
        self.send_response(404 if answer is None else 200)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            lines = next(self.streams[str(len(asked["prompt"]))])
        self.send_response(200)
        self.end_headers()
        start = time.perf_counter()
        for moment, line in lines:
            time.sleep(max(0.0, start + moment - time.perf_counter()))
            self.wfile.write(f"{line}\n\n".encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Any]:
    running = []

    def start(handler: type[BaseHTTPRequestHandler] = Recorded) -> Server:
        httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        httpd.daemon_threads = False  # closing waits for the answers still being given
        thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        running.append((httpd, thread))
        return Server(f"http://127.0.0.1:{httpd.server_port}", timeout_s=5)

    yield start
    for httpd, thread in running:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def test_block_counts_equal_the_servers_own(serve) -> None:
    """Model, limits, blocks and version are read as the server printed them."""
    facts = serve().facts()
    assert facts == ("tiny-llama", 8192, 32, 2600, "auto", "0.32.0")


def observe(server: Server, path: Path) -> list[dict]:
    """All rows of a session with this server, continued if the file is there."""
    facts = server.facts()
    session = open_session(path, {"op": "machine", "machine": "recorded"})
    loads.observe(server, facts, session, {"model": "tiny-llama"}, rounds=1)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_from_streamed_tokens(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded streams give decode and prefill rows with the recorded times; a second pass sends nothing twice."""
    monkeypatch.setattr(loads, "LOADS", (ServerLoad(1, 64, 12), ServerLoad(2, 512, 12)))
    monkeypatch.setattr(loads, "INJECTIONS", ())
    server = serve()
    rows = observe(server, tmp_path / "m.jsonl")
    decode = {r["num_decodes"]: r for r in rows if r["op"] == "decode_step"}
    assert set(decode) == {1, 2}
    assert decode[1]["num_repeats"] == 11
    assert decode[1]["decode_context"] == 70  # 64 of the prompt, the first token, half of eleven steps
    assert decode[1]["time_s"] > 0
    [prefill] = [r for r in rows if r["op"] == "prefill_step"]
    assert prefill["num_prefill_tokens"] == 64
    assert prefill["time_s"] > 0
    assert observe(server, tmp_path / "m.jsonl") == rows


def test_recorded_times_give_the_recorded_step() -> None:
    """The step time of a lone stream is its last token's time less its first's, over the steps between."""
    times = tuple(moment for moment, line in EXCHANGE["streams"]["64"][0] if "[DONE]" not in line)
    row = loads.decode_row(ServerLoad(1, 64, 12), [Stream(64, 0.0, times)])
    assert row is not None
    assert row["time_s"] == pytest.approx((times[-1] - times[0]) / 11)


def test_decode_window_counts_only_common_tokens() -> None:
    """Steps are counted where every stream decodes; streams that never overlap give no row."""
    first = Stream(10, 0.0, tuple(i / 10 for i in range(1, 21)))
    late = Stream(10, 0.0, tuple(0.55 + i / 10 for i in range(20)))
    row = loads.decode_row(ServerLoad(2, 10, 20), [first, late])
    assert row is not None
    assert row["time_s"] == pytest.approx(0.1, rel=0.05)
    assert loads.decode_row(ServerLoad(2, 10, 20), [first, Stream(10, 0.0, (5.0, 6.0))]) is None


def test_mixed_step_is_the_decoders_longest_gap() -> None:
    """A prompt that stalls its neighbours for 0.5 s is a mixed step of 0.5 s with their context."""
    decoder = Stream(100, 0.0, (0.1, 0.2, 0.3, 0.8, 0.9))
    lone = Stream(256, 0.25, (0.8, 0.9))
    row = loads.mixed_row(Injection(1, 100, 256), [decoder], lone)
    assert row is not None
    assert row["time_s"] == pytest.approx(0.5)
    assert row["decode_context"] == 103
    assert row["num_tokens"] == 257


def test_loads_respect_the_server() -> None:
    """No load is longer than the model allows or takes more than half of the pool."""
    from kvplan.calibrate.server.client import CacheFacts

    small = CacheFacts("m", 1024, 16, 100, "auto", "0.32.0")
    for load in loads.possible_loads(small):
        assert load.prompt_tokens + load.output_tokens <= 1024
        assert load.concurrency * (load.prompt_tokens + load.output_tokens) <= 800
    assert loads.possible_loads(small)
    assert loads.possible_loads(small._replace(num_gpu_blocks=1)) == []


def test_metrics_text() -> None:
    """Prometheus samples with and without labels; comments and noise are passed over."""
    text = '# HELP x\nx 1\ny{a="b",c="d\\"e"} 2.5\nnot a metric\nz{ 1\n'
    assert [(m.name, m.labels, m.value) for m in parse_metrics(text)] == [
        ("x", {}, 1.0),
        ("y", {"a": "b", "c": 'd\\"e'}, 2.5),
    ]


class Nonsense(Recorded):
    exchange = {"GET /v1/models": {"data": []}}


class Silent(Recorded):
    def do_GET(self) -> None:
        time.sleep(0.3)


class NoMetrics(Recorded):
    exchange = {**EXCHANGE, "GET /metrics": ["vllm:num_requests_running 0"]}


class Garbage(Recorded):
    streams = {"32": cycle([[[0.0, "data: hello"]]])}


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (Nonsense, "lists no model"),
        (NoMetrics, "no vllm:cache_config_info"),
        (Garbage, "not a completion"),
    ],
)
def test_nonsense_is_one_clear_line(serve, handler, says: str, tmp_path: Path) -> None:
    """A server that is not vLLM, hides its metrics or streams garbage is named in one line."""
    with pytest.raises(KvplanError, match=says) as caught:
        observe(serve(handler), tmp_path / "m.jsonl")
    assert "\n" not in str(caught.value)


class Page(Recorded):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>hello</title>")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:99999", "is not an address"),
        ("http://127.0.0.1:port", "is not an address"),
        ("http://[::1", "is not an address"),
        ("http://127.0.0.1:1", "stopped answering"),
        ("", "did not answer in JSON; is this an OpenAI-style server"),
    ],
)
def test_the_command_names_an_address_that_will_not_do(
    serve, url: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No address, a dead one, one that answers with a web page: one line, exit code 2, nothing written."""
    files = ["--measurements", str(tmp_path / "m.jsonl"), "-o", str(tmp_path / "p.json")]
    assert run(["calibrate", "--quiet", "--gpu", "cpu", "--server", url or serve(Page).url, *files]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_card_is_told_before_the_server_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """The card of a server is a name of the table, or cpu."""
    assert run(["calibrate", "--quiet", "--gpu", "h2000", "--server", "http://127.0.0.1:1"]) == 2
    assert "h2000" in capsys.readouterr().err


def test_a_server_that_dies_midway_costs_only_what_was_not_sent(
    serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error says where the rows are; the next call sends what is missing and nothing twice."""
    monkeypatch.setattr(loads, "LOADS", (ServerLoad(1, 64, 12), ServerLoad(2, 512, 12)))
    monkeypatch.setattr(loads, "INJECTIONS", ())
    left = [2]  # the warm-up and the first load

    class Dying(Recorded):
        def do_POST(self) -> None:
            left[0] -= 1
            if left[0] >= 0:
                super().do_POST()

    url, out = serve(Dying).url, tmp_path / "m.jsonl"
    model = load_model("Qwen/Qwen3-8B")
    with pytest.raises(
        KvplanError, match=r"stopped answering.*; 1 loads are in .*m\.jsonl, run it again to go on"
    ):
        measure_server(out, url, model, "cpu", rounds=1)
    kept = out.read_text()
    assert '"decode_step"' in kept
    left[0] = 100
    measure_server(out, url, model, "cpu", rounds=1)
    assert out.read_text().startswith(kept)
    assert left[0] == 100 - 1 - 2


class Dripping(Recorded):
    """A byte every 20 ms, for as long as somebody reads."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(200):
            time.sleep(0.02)
            try:
                self.wfile.write(b" ")
            except OSError:
                return

    do_POST = do_GET  # noqa: N815


class Endless(Recorded):
    """More than anybody asked for: events without an end, or a line without one."""

    piece = b": still there\n" * 10_000

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(self.piece)

    do_GET = do_POST  # noqa: N815


class OneLine(Endless):
    piece = b"data: " + b"x" * 100_000


def test_an_answer_has_a_deadline_and_so_have_all_of_them(serve) -> None:
    """A byte now and then never runs into a socket's time-out; the whole has an end, too."""
    slow = replace(serve(Dripping), answer_s=0.2)
    begun = time.monotonic()
    for ask in (lambda: slow.get("/metrics"), lambda: slow.stream("m", [1], 2)):
        with pytest.raises(KvplanError, match="did not end its answer within 0 s"):
            ask()
    assert time.monotonic() - begun < 2
    with pytest.raises(KvplanError, match="is not done within 0 h"):
        replace(slow, whole_s=0.0).get("/metrics")


@pytest.mark.parametrize("handler", [Endless, OneLine])
def test_an_answer_has_a_most_of_bytes(serve, handler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MOST_BYTES", 1 << 20)
    server = serve(handler)
    with pytest.raises(KvplanError, match="streams without an end"):
        server.stream("m", [1], 2)
    with pytest.raises(KvplanError, match="answered with more than 1 MiB"):
        server.get("/metrics")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"GET /metrics": 'vllm:cache_config_info{block_size="None",num_gpu_blocks="9"} 1'},
            "block_size .* 'None'",
        ),
        ({"GET /metrics": 'vllm:cache_config_info{num_gpu_blocks="9"} 1'}, "block_size .* 'nothing'"),
        (
            {"GET /metrics": 'vllm:cache_config_info{block_size="16",num_gpu_blocks="²"} 1'},
            "num_gpu_blocks .* '²'",
        ),
        ({"GET /v1/models": "9" * 10_000}, "did not answer in JSON"),
        ({"GET /v1/models": '{"data": [{"id": "m", "max_model_len": Infinity}]}'}, "lists no model"),
        ({"GET /v1/models": "[" * 100_000}, "did not answer in JSON"),
    ],
)
def test_facts_that_are_none(serve, changed: dict[str, str], said: str) -> None:
    """What is no number, or one of 10,000 digits."""

    class Odd(Recorded):
        def do_GET(self) -> None:
            answer = changed.get(f"GET {self.path}")
            if answer is None:
                super().do_GET()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

    with pytest.raises(KvplanError, match=said):
        serve(Odd).facts()


def test_a_long_line_of_metrics_takes_no_time() -> None:
    begun = time.monotonic()
    assert not list(parse_metrics("x" * 1_000_000 + "\nx{" + "a" * 1_000_000))
    assert len(list(parse_metrics("x{" + "a" * 300_000 + "} 1"))) == 1
    assert time.monotonic() - begun < 2


def test_a_server_that_does_not_answer(serve) -> None:
    """No answer within the deadline, no server at all, and no address are three clear lines."""
    slow = serve(Silent)
    with pytest.raises(KvplanError, match=r"did not answer within 0\.1 s"):
        Server(slow.url, timeout_s=0.1).facts()
    with pytest.raises(KvplanError, match="stopped answering"):
        Server("http://127.0.0.1:1", timeout_s=1).facts()
    with pytest.raises(KvplanError, match="is not an address"):
        Server("localhost").facts()
