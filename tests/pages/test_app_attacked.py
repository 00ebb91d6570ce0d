"""The app as a stranger may treat it: too much sent, runs left, connections cut. Speaks Streamlit's own protocol."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from places import ROOT

pytest.importorskip("streamlit")
pytest.importorskip("websockets")

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.exceptions import ConnectionClosed

from benchmarks.load_app import Visitor, children, serve
from kvplan.pages.jobs import GONE_AFTER_S, GRACE_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes as Linux shows them")
LONG = {
    "tab": "Simulate",
    "scenario_source": "Bundled scenario",
    "scenario": "chat",
    "scenario_set": "workload.num_requests=1000000",
    "run": "simulate",
}


class Served:
    """A server, and what it has told."""

    def __init__(self, pid: int, port: int, log: Path) -> None:
        self.pid, self.port, self.log = pid, port, log
        first = Visitor(port)
        first.open(tab="Estimate")
        first.follow(time.monotonic() + 120)  # the answer to the first question, worked out once for all
        first.leave()
        self.settle(60)

    def settle(self, seconds: float) -> None:
        """Wait until no visitor's work runs: the server, what its work forks from, and that one's keeper are left."""
        until = time.monotonic() + seconds
        while len(children(self.pid)) != 3 and time.monotonic() < until:
            time.sleep(0.1)
        assert len(children(self.pid)) == 3

    def answers(self) -> str:
        """What somebody else sees meanwhile, whose run ends."""
        other = Visitor(self.port)
        said = other.open(tab="Simulate", run="simulate", thinking="1K", num_prompts=20)
        said += other.follow(time.monotonic() + 60)
        other.leave()
        assert "Mean TTFT" in said
        return said


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    server, port = serve(str(folder))
    try:
        yield Served(server.pid, port, folder / "server.log")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)
    log = (folder / "server.log").read_text()
    assert "Traceback" not in log
    assert "the page failed" not in log


def test_a_connection_cut_in_the_middle_of_a_run_stops_it(served: Served) -> None:
    """No goodbye: the worker is gone soon, and nothing of it is left in the way."""
    visitor = Visitor(served.port)
    visitor.open(**LONG)
    assert len(children(served.pid)) == 4
    visitor.socket.socket.shutdown(socket.SHUT_RDWR)
    served.settle(GONE_AFTER_S + GRACE_S + 10)


def test_runs_started_and_left_hold_up_nobody(served: Served) -> None:
    for _ in range(8):
        visitor = Visitor(served.port)
        visitor.open(**LONG)
        visitor.leave()
    served.answers()
    served.settle(GONE_AFTER_S + GRACE_S + 30)


def test_a_message_too_large_closes_only_its_own_connection(served: Served) -> None:
    visitor = Visitor(served.port)
    with suppress(ConnectionClosed):
        visitor.socket.send(b"x" * (20 << 20))
    with pytest.raises(ConnectionClosed):
        visitor.socket.recv(timeout=30)
    served.answers()


def _session(visitor: Visitor) -> str:
    message = BackMsg()
    message.rerun_script.query_string = ""
    visitor.socket.send(message.SerializeToString())
    while True:
        told = ForwardMsg.FromString(visitor.socket.recv(timeout=60))  # type: ignore[arg-type]
        if told.WhichOneof("type") == "new_session":
            return str(told.new_session.initialize.session_id)


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_too_large_is_refused_as_it_comes(served: Served, chunked: bool) -> None:
    """Two hundred MB, whether or not it is said beforehand how much it is."""
    visitor = Visitor(served.port)
    session = _session(visitor)
    with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/_stcore/health") as reply:
        cookie = str(reply.headers["set-cookie"]).partition(";")[0]
    head = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.yaml"\r\n\r\n'

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(3200):
            yield b"x" * (1 << 16)
        yield b"\r\n--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b", "Cookie": cookie,
               "X-Xsrftoken": cookie.partition("=")[2]}  # fmt: skip
    if not chunked:
        headers["Content-Length"] = str(len(head) + (3200 << 16) + 9)
    address = f"/_stcore/upload_file/{session}/1"
    with (
        closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)) as connection,
        suppress(BrokenPipeError, ConnectionResetError),  # it does not wait for the rest
    ):
        connection.request("PUT", address, body=body(), headers=headers, encode_chunked=chunked)
        assert connection.getresponse().status == 413
    visitor.leave()
    served.answers()


def test_no_place_of_the_server_is_told(served: Served) -> None:
    """Whatever was asked: no path, no traceback."""
    said = served.answers()
    for link in (
        {
            "tab": "Simulate",
            "scenario_source": "Bundled scenario",
            "scenario_set": "step_time.profile=/etc/passwd",
        },
        {
            "tab": "Recommend",
            "search_source": "Bundled scenario",
            "search_set": "search.over={gpu: [/etc/x.yaml]}",
        },
        {"tab": "Strategies", "strategies_set": "problems.pass_table=../x.csv", "run": "compare"},
        {"model": str(ROOT), "gpu": "local"},
    ):
        visitor = Visitor(served.port)
        said += visitor.open(**link)
        visitor.leave()
    assert "root:" not in said
    assert "Traceback" not in said
    assert str(ROOT / "kvplan") not in said
    assert sys.prefix not in said
