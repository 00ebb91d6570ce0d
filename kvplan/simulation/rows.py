"""The load's columns as requests for the engine, a chunk of rows at a time. Knows no clock."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvplan.content import Content, Segment, prompt_of
from kvplan.simulation.sim_request import Live
from kvplan.workload.load import Load, settle_lengths


class Rows:
    """Turns the load's columns into requests, a chunk of rows at a time."""

    CHUNK = 4096
    MAX_CHUNKS = 32

    def __init__(self, load: Load, max_model_len: np.ndarray[Any, Any]) -> None:
        self.load = load
        self.told, self.refused = settle_lengths(load, max_model_len)
        self.any_refused = bool(self.refused.any())
        self._priority = [cls.priority for cls in load.classes]
        self._plain = load.block_ids is None and load.previous_turn is None
        self._chunks: dict[int, list[tuple[int, ...]]] = {}
        if load.previous_turn is not None:
            self._first = self._first_turns(load.previous_turn)

    def _first_turns(self, previous: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        first = np.arange(len(previous))
        for row in np.flatnonzero(previous >= 0):
            first[row] = first[previous[row]]
        return first

    def make(self, row: int) -> Live:
        """The request of a row."""
        index, offset = divmod(row, self.CHUNK)
        chunk = self._chunks.get(index)
        if chunk is None:
            chunk = self._fill(index)
        told, output, thinking, class_id, prompt, group = chunk[offset]
        if self._plain and group < 0:
            segments: Content = (Segment(prompt_of(row), prompt),)
        else:
            segments = self.load.prompt(row)
        live = Live(row, segments, told, output, thinking, class_id, self._priority[class_id])
        if self.load.previous_turn is not None:
            live.session = int(self._first[row])
            live.turn = _turn(self.load.previous_turn, row)
        return live

    def _fill(self, index: int) -> list[tuple[int, ...]]:
        load, rows = self.load, slice(index * self.CHUNK, (index + 1) * self.CHUNK)
        columns = (self.told, load.output_tokens, load.thinking_tokens, load.class_id, load.prompt_tokens,
                   load.prefix_group)  # fmt: skip
        if len(self._chunks) >= self.MAX_CHUNKS:
            self._chunks.clear()
        chunk = self._chunks[index] = list(zip(*(c[rows].tolist() for c in columns), strict=True))
        return chunk


def _turn(previous: np.ndarray[Any, Any], row: int) -> int:
    turn = 0
    while previous[row] >= 0:
        row, turn = int(previous[row]), turn + 1
    return turn
