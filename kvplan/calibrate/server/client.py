"""A live engine as seen from outside: its block counts from /metrics, one completion's token times.

Speaks the OpenAI completions API and Prometheus text with the standard library alone, and only reads and asks.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from kvplan.ground.errors import KvplanError

_METRIC = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)(?:\s+\d+)?$")
_LABEL = re.compile(r'(?<!\w)(\w+)="((?:[^"\\]|\\.)*)"')
_COUNT = re.compile(r"[0-9]{1,12}", re.ASCII)
MOST_BYTES = 16 << 20
"""Of one answer; vLLM's /metrics has 0.1 MiB, a load's stream 10 KiB."""
LONGEST_LINE = 1 << 16
"""Bytes of one server-sent event."""


class CacheFacts(NamedTuple):
    """What a server says of itself."""

    model: str
    max_model_len: int
    block_size: int
    num_gpu_blocks: int
    """Null block included, as vLLM counts."""
    kv_cache_dtype: str
    engine_version: str


class Stream(NamedTuple):
    """One streamed completion: when it was sent and when each token came, in seconds of one monotonic clock."""

    prompt_tokens: int
    sent_s: float
    token_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Server:
    """A running engine at `url`; every call has a deadline, a bound on bytes and one clear error."""

    url: str
    timeout_s: float = 60.0
    """Without a byte."""
    answer_s: float = 900.0
    """For one whole answer."""
    whole_s: float = 2 * 3600.0
    """For all answers, from the first question on."""
    _asked_s: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds that the next answer may take."""
        return min(self.answer_s, self._asked_s + self.whole_s - time.monotonic())

    def get(self, path: str) -> str:
        """Body of a GET; errors name the address and what it said."""
        with _Connection(self) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read(MOST_BYTES + 1).decode(errors="replace")
            if response.status != 200:
                raise KvplanError(f"{self.url}{path} answered {response.status}; is this a vLLM server?")
            if len(body) > MOST_BYTES:
                raise KvplanError(f"{self.url}{path} answered with more than {MOST_BYTES >> 20} MiB")
            return body

    def json(self, path: str) -> Any:
        """A JSON answer."""
        text = self.get(path)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):  # also a number of more digits than Python reads
            raise KvplanError(
                f"{self.url}{path} did not answer in JSON; is this an OpenAI-style server?"
            ) from None

    def facts(self) -> CacheFacts:
        """Model, limits and block counts, from /v1/models, /version and /metrics."""
        listed = self.json("/v1/models")
        try:
            model = listed["data"][0]
            name, longest = str(model["id"]), int(model["max_model_len"])
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            raise KvplanError(
                f"{self.url}/v1/models lists no model with a max_model_len; is this vLLM?"
            ) from None
        info = next(
            (m.labels for m in parse_metrics(self.get("/metrics")) if m.name == "vllm:cache_config_info"),
            None,
        )
        if info is None:
            raise KvplanError(
                f"{self.url}/metrics has no vllm:cache_config_info; start vLLM with its metrics on"
            )
        block_size, num_blocks = (self._count(info, name) for name in ("block_size", "num_gpu_blocks"))
        try:
            version = str(self.json("/version")["version"])
        except (KvplanError, KeyError, TypeError):
            version = "unknown"
        return CacheFacts(
            name,
            longest,
            block_size,
            num_blocks,
            info.get("cache_dtype", ""),
            version,
        )

    def _count(self, info: dict[str, str], name: str) -> int:
        if not _COUNT.fullmatch(info.get(name, "")):
            said = info.get(name, "nothing")[:40]
            raise KvplanError(
                f"{self.url}/metrics: {name} of vllm:cache_config_info is {said!r}, not a number"
            )
        return int(info[name])

    def stream(
        self,
        model: str,
        prompt: list[int],
        output_tokens: int,
        second_token: Callable[[float], None] = lambda gap: None,
    ) -> Stream:
        """Send one completion and note when each token arrives; tell the first gap as soon as it is known."""
        body = {
            "model": model, "prompt": prompt, "max_tokens": output_tokens, "stream": True,
            "ignore_eos": True, "temperature": 0,
        }  # fmt: skip
        with _Connection(self) as connection:
            sent = time.perf_counter()
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            with connection.getresponse() as response:
                if response.status != 200:
                    said = response.read(300).decode(errors="replace")
                    raise KvplanError(f"{self.url}/v1/completions answered {response.status}: {said}")
                times = []
                for moment in _token_times(response, self.url):
                    times.append(moment)
                    if len(times) == 2:
                        second_token(times[1] - times[0])
        if len(times) < 2:
            raise KvplanError(f"{self.url} streamed {len(times)} tokens where {output_tokens} were asked for")
        return Stream(len(prompt), sent, tuple(times))


class _Connection:
    """An HTTP connection whose failures read as one line."""

    def __init__(self, server: Server) -> None:
        self.server = server
        try:
            parts = urlsplit(server.url)
            port = parts.port
        except ValueError:  # no number, or beyond 65535; an unclosed bracket
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise KvplanError(f"{server.url!r} is not an address; write http://host:port")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.left_s, self.is_late = server.left_s, False
        if self.left_s <= 0:
            raise KvplanError(f"{server.url} is not done within {server.whole_s / 3600:g} h")
        self.connection = kind(parts.hostname, port, timeout=min(server.timeout_s, self.left_s))
        self.alarm = threading.Timer(self.left_s, self._hang_up)
        self.alarm.daemon = True

    def __enter__(self) -> http.client.HTTPConnection:
        try:
            self.connection.connect()
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.__exit__(type(error), error, None)
            raise KvplanError(f"{self.server.url[:200]!r} is not an address ({error})") from None
        self.socket = self.connection.sock
        self.alarm.start()
        return self.connection

    def _hang_up(self) -> None:
        """Whatever is being read ends here: a server that sends a byte a second never times out."""
        self.is_late = True
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.alarm.cancel()
        self.connection.close()
        if self.is_late:
            raise KvplanError(
                f"{self.server.url} did not end its answer within {self.left_s:,.0f} s"
            ) from None
        if isinstance(error, KvplanError):
            return
        if isinstance(error, TimeoutError | socket.timeout):
            raise KvplanError(
                f"{self.server.url} did not answer within {self.server.timeout_s:g} s"
            ) from None
        if isinstance(error, OSError | http.client.HTTPException):
            raise KvplanError(
                f"{self.server.url} stopped answering: {error or type(error).__name__}"
            ) from None


def _token_times(response: http.client.HTTPResponse, url: str) -> Iterator[float]:
    """Arrival time of every server-sent event that carries text or a token."""
    seen = 0
    while raw := response.readline(LONGEST_LINE + 1):
        seen += len(raw)
        if len(raw) > LONGEST_LINE or seen > MOST_BYTES:
            raise KvplanError(f"{url} streams without an end: {seen:,} bytes")
        line = raw.strip()
        if not line.startswith(b"data:"):
            continue
        if line == b"data: [DONE]":
            return
        try:
            choices = json.loads(line[5:])["choices"]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise KvplanError(f"{url} streamed something that is not a completion: {line[:80]!r}") from None
        if choices:
            yield time.perf_counter()


class Metric(NamedTuple):
    """One sample of Prometheus text."""

    name: str
    labels: dict[str, str]
    value: float


def parse_metrics(text: str) -> Iterator[Metric]:
    """Samples of a Prometheus exposition; comments and lines that are not samples are passed over."""
    for line in text.splitlines():
        match = _METRIC.match(line)
        if match is None or line.startswith("#"):
            continue
        try:
            value = float(match["value"])
        except ValueError:
            continue
        yield Metric(match["name"], dict(_LABEL.findall(match["labels"] or "")), value)
