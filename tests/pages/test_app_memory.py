"""What the server keeps in memory after visitors have left, and what it gives back."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from inspect import getsource, signature
from pathlib import Path

import pytest

pytest.importorskip("streamlit")

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.runtime import Runtime
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.uploaded_file_manager import UploadedFileRec
from streamlit.web.server.starlette import starlette_websocket

from kvplan.cli.app_command import MEMORY
from kvplan.pages import sent
from kvplan.pages.memory_kept import (
    AT_LEAST_EVERY_S,
    LOADED_AFTER,
    QUIET_S,
    Housekeeper,
    collect,
    gives_back,
)
from kvplan.pages.sent import INPUTS_EACH, UPLOADS_EACH, bound_messages, bound_uploads


class House:
    """A housekeeper, who is there, and what was collected: True for all."""

    def __init__(self) -> None:
        self.there, self.collected = set[str](), list[bool]()
        self.keeper = Housekeeper(self.there.__contains__, self.collected.append)

    def look(self, now: float) -> list[bool]:
        self.collected.clear()
        self.keeper.look(now)
        return list(self.collected)


def test_what_is_new_is_collected_after_pages_and_when_somebody_leaves() -> None:
    house = House()
    start = house.keeper._looked_at
    assert house.look(start + 1) == []
    house.there.add("a")
    for at in range(LOADED_AFTER[-1]):
        house.keeper.note("a")
        assert house.look(start + 2 + at) == [at + 1 in LOADED_AFTER]
    assert house.look(start + 30) == []
    house.there.clear()
    assert house.look(start + 31) == [False]
    assert house.look(start + 32) == []


def test_all_is_collected_once_when_everybody_has_been_gone_for_long() -> None:
    house = House()
    start = house.keeper._looked_at
    house.there.add("a")
    house.keeper.note("a")
    house.look(start + 1)
    house.there.clear()
    house.look(start + 2)
    assert house.look(start + QUIET_S) == []
    assert house.look(start + 2 + QUIET_S) == [True]
    assert house.look(start + 4 + 2 * QUIET_S) == []
    house.there.add("b")
    house.keeper.note("b")
    house.look(start + 500)
    house.there.clear()
    house.look(start + 502)
    assert house.look(start + 503 + QUIET_S) == [True]


def test_where_always_somebody_is_all_is_collected_now_and_then() -> None:
    house = House()
    start = house.keeper._looked_at
    house.there.add("a")
    house.keeper.note("a")
    assert house.look(start + 1) == [True]
    whole = sum(house.look(start + 1 + minute * 60) == [True] for minute in range(1, 61))
    assert whole == int(3600 // (AT_LEAST_EVERY_S + 60))


def test_what_is_out_of_sight_is_seen_when_all_is_looked_through() -> None:
    """A ring that was frozen stays until all is collected."""

    class Ring:
        def __init__(self) -> None:
            self.itself = self

    try:
        ring = Ring()
        seen = weakref.ref(ring)
        collect(True)
        del ring
        collect(False)
        assert seen() is not None
        collect(True)
        assert seen() is None
    finally:
        gc.unfreeze()


LEAVES = """
import gc, sys
from pathlib import Path
from kvplan.pages.memory_kept import collect
def anonymous():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) >> 10
collect(True)
before = anonymous()
visits = [[{"a": float(i), "b": str(i)} for i in range(400)] for _ in range(500)]
kept = [visit.pop() for visit in visits]  # a little of each stays: where it lies nothing can be given back
peak = anonymous()
del visits
collect(False)
print(before, peak, anonymous())
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_the_servers_allocator_gives_back_what_lies_around_what_stays() -> None:
    """A little that stays of each visit does not keep the rest: a tenth of it is left, however it lies."""
    words = [sys.executable, "-c", LEAVES]
    told = subprocess.run(
        words, env=MEMORY, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    before, peak, after = map(int, told.stdout.split())
    assert peak - before > 40
    assert after - before < (peak - before) / 10


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is chosen")
def test_who_starts_it_otherwise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own environment is the one that gives memory back."""
    monkeypatch.delenv("PYTHONMALLOC", raising=False)
    assert not gives_back()
    for name, value in MEMORY.items():
        monkeypatch.setenv(name, value)
    assert gives_back()


# --- what is sent --------------------------------------------------------------------------------------


def test_what_pages_upload_is_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many files of a page and so many bytes of all pages, whatever is sent; what came last is there."""
    manager = MemoryUploadedFileManager("/upload")
    bound_uploads(manager)
    for number in range(3 * UPLOADS_EACH):
        manager.add_file("a", UploadedFileRec(str(number), "a.yaml", "text/yaml", b"x" * 10))
    assert list(manager.file_storage["a"]) == [str(n) for n in range(2 * UPLOADS_EACH, 3 * UPLOADS_EACH)]
    monkeypatch.setattr(sent, "UPLOADED_BYTES", 1000)
    for page in range(30):
        manager.add_file(f"page {page}", UploadedFileRec("1", "a.yaml", "text/yaml", b"x" * 100))
    held = {session: files for session, files in manager.file_storage.items() if files}
    assert list(held) == [f"page {page}" for page in range(20, 30)]


class Reads:
    """Streamlit's runtime, as far as it reads messages."""

    def __init__(self) -> None:
        self.read = list[tuple[str, int, object]]()

    def handle_backmsg(self, session_id: str, message: BackMsg, *, client: object = None) -> None:
        self.read.append((session_id, len(message.rerun_script.widget_states.widgets), client))


def test_a_message_of_more_inputs_than_any_page_has_is_not_read(caplog: pytest.LogCaptureFixture) -> None:
    """Others are handed on as they came, those without inputs too."""
    runtime = Reads()
    bound_messages(runtime)
    for number in (0, 80, INPUTS_EACH, INPUTS_EACH + 1, 100_000):
        message = BackMsg()
        for name in range(number):
            message.rerun_script.widget_states.widgets.add().id = str(name)
        runtime.handle_backmsg("a", message, client=runtime)
    assert runtime.read == [("a", number, runtime) for number in (0, 80, INPUTS_EACH)]
    assert len(caplog.messages) == 2


def test_the_runtime_reads_messages_by_the_name_that_is_bounded() -> None:
    """Streamlit's own: were it renamed, nothing would be bounded."""
    assert {"session_id", "msg"} <= set(signature(Runtime.handle_backmsg).parameters)
    assert "runtime.handle_backmsg(" in getsource(starlette_websocket)
