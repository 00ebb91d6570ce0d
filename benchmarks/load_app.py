"""Twenty visitors at once: does the server answer everybody, whatever one of them asks, and forget them afterwards?

    python benchmarks/load_app.py --minutes 2 --visitors 20

Starts `kvplan app`, speaks Streamlit's own protocol to it (its messages, over a websocket), and prints how long the
health check took meanwhile, how many runs ended, whether anybody saw another's figures, and the memory before and
after. Most visitors run bundled scenarios and their own questions; one pastes 60,000 digits and a log of them, one
opens links with `n: 1000000000`, one leaves while its run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from urllib.parse import urlencode

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).resolve().parents[1]
SCENARIOS = (
    "chat",
    "priorities",
    "shared_prompts",
    "fp8_kv",
    "sliding_window",
    "block_map",
    "sglang_reasoning",
)
ALLOWED_S = 1.0
KEPT_BYTES = 50 << 20


class Visitor:
    """A page of the app, without a browser: opens a link, turns inputs, reads what is sent."""

    def __init__(self, port: int) -> None:
        address = f"ws://127.0.0.1:{port}/_stcore/stream"
        self._open = connect(
            address, subprotocols=["streamlit"], max_size=None, ping_interval=None, open_timeout=60
        )  # type: ignore[list-item]
        self.socket: ClientConnection = self._open.__enter__()
        self.query, self.ids, self.typed = "", dict[str, str](), dict[str, str]()
        self.fragment = ""
        """The part of the page that asks to be run again by itself; empty = none does."""

    def open(self, patience_s: float = 90, **inputs: object) -> str:
        """Open a link; return all text that is sent until the page has run."""
        self.query = urlencode(inputs)
        return self.rerun(patience_s)

    def rerun(self, patience_s: float = 90, fragment: str = "", **typed: str) -> str:
        """Run the page again, or a part of it, with texts typed into inputs."""
        message = BackMsg()
        message.rerun_script.query_string = self.query
        message.rerun_script.fragment_id = fragment
        message.rerun_script.is_auto_rerun = bool(fragment)
        self.typed |= {self.ids[key]: text for key, text in typed.items() if key in self.ids}
        for widget, text in self.typed.items():
            state = message.rerun_script.widget_states.widgets.add()
            state.id, state.string_value = widget, text
        self.socket.send(message.SerializeToString())
        return self._read(patience_s)

    def follow(self, until: float) -> str:
        """As a browser does, run what asks for it again, once a second, until nothing asks any more; the last page."""
        said = ""
        while self.fragment and time.monotonic() < until:
            time.sleep(1.0)
            found = self.rerun(fragment=self.fragment)
            said = found if not self.fragment else said
        return said

    def _read(self, patience_s: float) -> str:
        until, found, asks = time.monotonic() + patience_s, list[str](), ""
        while time.monotonic() < until:
            data = self.socket.recv(timeout=max(0.1, until - time.monotonic()))
            message = ForwardMsg.FromString(data if isinstance(data, bytes) else data.encode())
            found.append(str(message)[:200_000])
            self._note(message)
            kind = message.WhichOneof("type")
            if kind == "auto_rerun":
                asks = message.auto_rerun.fragment_id
            if kind == "script_finished" and message.script_finished == ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                asks, found = "", []
            elif kind == "script_finished":
                if message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:  # the whole page
                    self.fragment = asks
                return "\n".join(found)
        raise TimeoutError("the page did not come to its end")

    def _note(self, message: ForwardMsg) -> None:
        """Remember the ids of inputs that are typed into."""
        element = message.delta.new_element
        if element.WhichOneof("type") == "text_area":
            self.ids[element.text_area.id.rpartition("-")[2]] = element.text_area.id

    def leave(self) -> None:
        """Close the page."""
        self._open.__exit__(None, None, None)


class Figures:
    """What all visitors saw."""

    def __init__(self) -> None:
        self.lock, self.counts, self.health, self.faults = (
            threading.Lock(),
            Counter[str](),
            list[float](),
            list[str](),
        )

    def count(self, what: str) -> None:
        """One more."""
        with self.lock:
            self.counts[what] += 1

    def fault(self, what: str) -> None:
        """Something that must not be."""
        with self.lock:
            self.faults.append(what)


def runs(port: int, number: int, until: float, figures: Figures, most_runs: int) -> None:
    """A visitor who simulates: the own question, a bundled scenario, each with a seed that nobody else has."""
    draws = random.Random(number)
    while time.monotonic() < until and figures.counts["runs ended"] < most_runs:
        seed = 1_000_000 + number * 1000 + draws.randrange(1000)
        if draws.random() < 0.5:
            link = {"users": 3 + number, "thinking": "1K", "num_prompts": 40, "seed": seed}
        else:
            change = f"workload.num_requests=60\nworkload.seed={seed}"
            link = {
                "scenario_source": "Bundled scenario",
                "scenario": draws.choice(SCENARIOS),
                "scenario_set": change,
            }
        try:
            visitor = Visitor(port)
            said = visitor.open(tab="Simulate", run="simulate", **link)
            begun = time.monotonic()
            while (
                "Mean TTFT" not in said and time.monotonic() - begun < 120 and time.monotonic() < until + 30
            ):
                said = visitor.follow(min(begun + 120, until + 30)) or said
                if "Mean TTFT" not in said:
                    said = visitor.rerun()
            if f"seed: {seed}" not in said.replace("\\n", "\n"):
                figures.fault(f"visitor {number} does not see its own seed")
            others = {
                text
                for text in said.split()
                if text.startswith("100") and text[:7].isdigit() and len(text) == 7
            }
            if any(int(text) // 1000 != seed // 1000 for text in others):
                figures.fault(f"visitor {number} sees {others}")
            figures.count("runs ended" if "Mean TTFT" in said else "runs not ended")
            visitor.leave()
        except (TimeoutError, ConnectionClosed, OSError) as error:
            figures.fault(f"visitor {number}: {type(error).__name__} {error}"[:120])
        time.sleep(draws.random() * 2)


def pastes(port: int, until: float, figures: Figures) -> None:
    """A visitor who pastes 60,000 digits wherever there is room."""
    digits = "9" * 60_000
    while time.monotonic() < until:
        try:
            visitor = Visitor(port)
            visitor.open(tab="Estimate")
            for key in ("config_text", "log"):
                visitor.rerun(**{key: digits})
                visitor.rerun(**{key: "x"})
            visitor.open(tab="Estimate", thinking=digits[:20_000])
            figures.count("pastes")
            visitor.leave()
        except (TimeoutError, ConnectionClosed, OSError) as error:
            figures.fault(f"who pastes: {type(error).__name__} {error}"[:120])
        time.sleep(0.5)


def asks_too_much(port: int, until: float, figures: Figures) -> None:
    """A visitor with links that ask for a thousand million branches."""
    change = "problems.strategies=[{strategy: best_of_n, n: 1000000000}]"
    while time.monotonic() < until:
        try:
            visitor = Visitor(port)
            visitor.open(tab="Strategies", strategies_set=change, run="compare")
            visitor.leave()
            figures.count("links that ask too much")
        except (TimeoutError, ConnectionClosed, OSError) as error:
            figures.fault(f"who asks too much: {type(error).__name__} {error}"[:120])
        time.sleep(2)


def leaves(port: int, until: float, figures: Figures) -> None:
    """A visitor who starts something long and closes the page."""
    while time.monotonic() < until:
        try:
            visitor = Visitor(port)
            change = "workload.num_requests=1000000"
            visitor.open(
                tab="Simulate",
                scenario_source="Bundled scenario",
                scenario="chat",
                scenario_set=change,
                run="simulate",
            )
            visitor.leave()
            figures.count("left with a run under way")
        except (TimeoutError, ConnectionClosed, OSError) as error:
            figures.fault(f"who leaves: {type(error).__name__} {error}"[:120])
        time.sleep(15)


def looks_at_all(port: int, figures: Figures) -> None:
    """A visitor who opens every tab and runs something in it: all of the app is loaded then."""
    links = {
        "Estimate": {},
        "Simulate": {"run": "simulate", "thinking": "1K", "num_prompts": 40, "owners": "true"},
        "Strategies": {"run": "compare", "strategies_set": "problems.num_problems=4"},
        "Recommend": {"run": "recommend", "search_source": "Bundled scenario", "thinking": "1K"},
        "Calibration": {"run": "fit", "measurements": "vllm-cpu-0.32.jsonl"},
    }
    for tab, inputs in links.items():
        try:
            visitor = Visitor(port)
            visitor.open(tab=tab, **inputs)
            visitor.follow(time.monotonic() + 30)
            visitor.leave()
            figures.count("tabs looked at")
        except (TimeoutError, ConnectionClosed, OSError) as error:
            figures.fault(f"who looks at {tab}: {type(error).__name__} {error}"[:120])


def watches_health(url: str, done: threading.Event, took: list[float], figures: Figures) -> None:
    """Ask four times a second whether a server lives."""
    while not done.is_set():
        begun = time.monotonic()
        try:
            with urllib.request.urlopen(url, timeout=30) as reply:
                reply.read()
        except OSError as error:
            figures.fault(f"health: {error}")
        took.append(time.monotonic() - begun)
        time.sleep(0.25)


@contextmanager
def idle_server(folder: str) -> Iterator[str]:
    """Another server of this machine, which nobody else asks: what a busy machine alone does to an answer."""
    port = free_port()
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", folder]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def memory_of(pid: int) -> int:
    """Bytes that the server and all its processes hold, what they share counted once: PSS without files.

    Pages of files, such as libraries, are the system's to drop; their share changes as other processes come and go.
    """
    total = 0
    for each in (pid, *children(pid)):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(
            int(line.split()[1]) << 10 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))
        )
    return total


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and all below it that live."""
    total = 0.0
    for each in (pid, *children(pid)):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def children(pid: int) -> list[int]:
    """All processes below one."""
    try:
        text = " ".join(p.read_text() for p in Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:
        return []
    below = [int(word) for word in text.split()]
    return [*below, *(grandchild for child in below for grandchild in children(child))]


def serve(folder: str) -> tuple[subprocess.Popen[bytes], int]:
    """The app, as `kvplan app` starts it."""
    port = free_port()
    words = [sys.executable, "-m", "kvplan", "app", f"--port={port}", "--address=127.0.0.1"]
    with open(Path(folder) / "server.log", "wb") as log:
        server = subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5):
                return server, port
        except OSError:
            time.sleep(0.2)


def settled(pid: int, seconds: float) -> int:
    """The least memory that is seen within so long."""
    until, least = time.monotonic() + seconds, memory_of(pid)
    while time.monotonic() < until:
        time.sleep(2)
        least = min(least, memory_of(pid))
    return least


def main() -> int:
    """Run it; 0 if all that was promised held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--runs", type=int, default=100, help="no new ones are started after so many")
    parser.add_argument(
        "--rest", type=float, default=100.0, help="seconds before and after, until memory is looked at"
    )
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="kvplan-load-") as folder:
        server, port = serve(folder)
        try:
            with idle_server(folder) as idle:
                return measure(asked, server.pid, port, idle)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(20)


def measure(asked: argparse.Namespace, pid: int, port: int, idle: str) -> int:
    """Visit, wait, report."""
    figures, done, other = Figures(), threading.Event(), list[float]()
    warm = time.monotonic() + 20
    first = [threading.Thread(target=runs, args=(port, 900 + i, warm, figures, 20)) for i in range(4)]
    first += [threading.Thread(target=each, args=(port, warm, figures)) for each in (pastes, asks_too_much)]
    first += [threading.Thread(target=looks_at_all, args=(port, figures))]
    for thread in first:
        thread.start()
    for thread in first:
        thread.join()
    before = settled(pid, asked.rest)
    figures.counts.clear()
    until = time.monotonic() + 60 * asked.minutes
    url = f"http://127.0.0.1:{port}/_stcore/health"
    health = [threading.Thread(target=watches_health, args=(each, done, took, figures))
              for each, took in ((url, figures.health), (idle, other))]  # fmt: skip
    visits = [
        threading.Thread(target=runs, args=(port, i, until, figures, asked.runs))
        for i in range(asked.visitors - 3)
    ]
    visits += [
        threading.Thread(target=each, args=(port, until, figures)) for each in (pastes, asks_too_much, leaves)
    ]
    for thread in (*health, *visits):
        thread.start()
    peak = before
    while any(thread.is_alive() for thread in visits):
        peak = max(peak, memory_of(pid))
        time.sleep(1)
    done.set()
    for thread in health:
        thread.join()
    settled(pid, asked.rest)
    knock = Visitor(port)  # Streamlit forgets sessions that are over when the next one comes
    knock.open(tab="Calibration")
    knock.leave()
    after = settled(pid, 10)
    slowest = max(figures.health)
    print(json.dumps({
        "visitors": asked.visitors, "minutes": asked.minutes, **figures.counts,
        "health_checks": len(figures.health), "health_median_s": round(median(figures.health), 4),
        "health_p99_s": round(sorted(figures.health)[int(0.99 * len(figures.health))], 3),
        "health_max_s": round(slowest, 3),
        "idle_server_p99_s": round(sorted(other)[int(0.99 * len(other))], 3), "idle_server_max_s": round(max(other), 3),
        "memory_before_mib": before >> 20, "memory_peak_mib": peak >> 20, "memory_after_mib": after >> 20,
        "faults": figures.faults[:10],
    }, indent=1))  # fmt: skip
    kept = slowest <= ALLOWED_S and after - before <= KEPT_BYTES and not figures.faults
    kept &= not figures.counts["runs not ended"]
    print(
        "held" if kept else "NOT held",
        f"(health within {ALLOWED_S:g} s, memory within {KEPT_BYTES >> 20} MiB, every run ended, nobody else's)",
    )
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
