"""What replays on leaping schedulers share: leaps are spelled out step by step, into the log of stepping.

An engine stands beside the scheduler that the replay records; block counts within a leap are not told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import NamedTuple

import numpy as np

from kvplan.conformance.vllm_records import StepRecord
from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.schedulers.leap.scheduler import LeapScheduler
from kvplan.schedulers.protocol import Counts, Leap
from kvplan.schedulers.request import Request
from kvplan.schedulers.step_by_step import StepByStep


class Look(NamedTuple):
    """The cache at the end of a step, and what it did since the start."""

    step: int
    free_blocks: int
    cached_blocks: int | None
    """Blocks with reusable content; None while some are held."""
    evicted_blocks: int
    hit_tokens: int


class ScriptedDrafts:
    """Drafts that are right where a scenario says so."""

    def __init__(self, run_of: Callable[[Request, int, int], int]) -> None:
        self.run_of = run_of

    def __call__(self, request: Request, num_drafts: int) -> int:
        """Of the drafts after a request's tokens so far: how many are right in a row."""
        return self.run_of(request, request.num_output_tokens, num_drafts)

    def runs(self, request: Request, first: int, count: int, num_drafts: int) -> Counts:
        """The same at `count` output positions from `first` on."""
        return np.array([self.run_of(request, first + i, num_drafts) for i in range(count)], np.int64)


class SpelledReplay(VLLMReplay):
    """One run of a scenario on an engine that leaps; `rng` cuts leaps short anywhere, as a clock may."""

    engine: LeapScheduler | StepByStep
    """Decides, and plans leaps: `LeapScheduler`, or `StepByStep` by visits."""

    def _open_books(self, rng: Random | None) -> None:
        self.rng = rng
        self.num_leaps = 0
        """Leaps of two steps or more taken so far."""
        self.num_leapt_steps = 0
        self.looks: list[Look] = []
        """Wherever scheduler and log are at the same step."""
        self._hit_tokens = 0
        self._spelled: deque[StepRecord] = deque()
        """Steps of the last leap that are not written down yet."""
        self._known_ends: deque[list[Request]] = deque()
        """Who ends at the coming reads of outputs, as far as a leap has told."""

    def _has_requests(self) -> bool:
        return bool(self._spelled) or self.engine.has_requests()

    def _add_request(self, request: Request) -> None:
        self.engine.add_request(request)

    def _abort(self, request_id: str) -> None:
        self.engine.abort(request_id)

    def _steps_of(self, leap: Leap) -> int:
        """Return how many of a leap's steps pass before the next abort, or an arrival that ends it, known now."""
        dues = [
            due for r in self._to_abort if r.id not in self.finish and (due := self._abort_due(r)) is not None
        ]
        if leap.ends_on_arrival and self._arrival is not None:
            dues.append(self._arrival)
        num_steps = min([leap.max_steps, *(due - self.step for due in dues)])
        return self.rng.randint(1, num_steps) if self.rng and num_steps > 1 else num_steps

    def _run_of(self, request: Request, position: int, num_drafts: int) -> int:
        """Count right drafts in a row from an output position on."""
        definition, right = self._defs[request.request_id], 0
        while right < num_drafts and self._is_right(definition, position + right):
            right += 1
        return right
