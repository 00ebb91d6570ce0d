"""A live engine as seen from outside: its block counts from /metrics, one completion's token times.

Speaks the OpenAI completions API and Prometheus text with the standard library alone, and only reads and asks.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from kvplan.errors import KvplanError

_METRIC = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


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
    """A running engine at `url`; every call has a deadline and one clear error."""

    url: str
    timeout_s: float = 60.0

    def get(self, path: str) -> str:
        """Body of a GET; errors name the address and what it said."""
        with _Connection(self) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read().decode(errors="replace")
            if response.status != 200:
                raise KvplanError(f"{self.url}{path} answered {response.status}; is this a vLLM server?")
            return body

    def json(self, path: str) -> Any:
        """A JSON answer."""
        try:
            return json.loads(self.get(path))
        except json.JSONDecodeError:
            raise KvplanError(
                f"{self.url}{path} did not answer in JSON; is this an OpenAI-style server?"
            ) from None

    def facts(self) -> CacheFacts:
        """Model, limits and block counts, from /v1/models, /version and /metrics."""
        listed = self.json("/v1/models")
        try:
            model = listed["data"][0]
            name, longest = str(model["id"]), int(model["max_model_len"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise KvplanError(
                f"{self.url}/v1/models lists no model with a max_model_len; is this vLLM?"
            ) from None
        info = next(
            (m.labels for m in parse_metrics(self.get("/metrics")) if m.name == "vllm:cache_config_info"),
            None,
        )
        if info is None or not info.get("num_gpu_blocks", "").isdigit():
            raise KvplanError(
                f"{self.url}/metrics has no vllm:cache_config_info; start vLLM with its metrics on"
            )
        try:
            version = str(self.json("/version")["version"])
        except (KvplanError, KeyError, TypeError):
            version = "unknown"
        return CacheFacts(
            name,
            longest,
            int(info["block_size"]),
            int(info["num_gpu_blocks"]),
            info.get("cache_dtype", ""),
            version,
        )

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
        self.connection = kind(parts.hostname, port, timeout=server.timeout_s)

    def __enter__(self) -> http.client.HTTPConnection:
        return self.connection

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.connection.close()
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
    for raw in response:
        line = raw.strip()
        if not line.startswith(b"data:"):
            continue
        if line == b"data: [DONE]":
            return
        try:
            choices = json.loads(line[5:])["choices"]
        except (json.JSONDecodeError, KeyError, TypeError):
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
