"""A request on its way through the system: the engine's request plus when things happened to it.

Times are ticks of the simulator's clock. Knows no SimPy.
"""

from __future__ import annotations

from collections.abc import Callable

from kvplan.ground.content import Content
from kvplan.schedulers.protocol import DecodePath
from kvplan.schedulers.request import Request
from kvplan.simulation.records import FINISH_REASONS, UNSET

STOP, LENGTH, TIMEOUT, REJECTED, REFUSED, UNFINISHED, PRUNED = range(len(FINISH_REASONS))


class SimRequest(Request):
    """One request and its history so far."""

    __slots__ = (
        "admitted", "arrival", "class_id", "decode_from", "decode_path", "discarded", "engine_arrival",
        "finish_delay", "first_delay", "first_token", "first_visible", "held", "high_water", "hit_tokens",
        "kv_area", "lost_at", "lost_ticks", "on_end", "output_tokens", "recomputed", "replica", "row", "scheduled",
        "session", "since", "thinking_tokens", "transferred", "turn", "visible_delay", "weight_from",
    )  # fmt: skip

    def __init__(
        self,
        row: int,
        prompt: Content,
        max_tokens: int,
        output_tokens: int,
        thinking_tokens: int = 0,
        class_id: int = 0,
        priority: int = 0,
        request_id: str = "",
    ) -> None:
        stop_at = output_tokens if output_tokens < max_tokens else None
        super().__init__(request_id or str(row), prompt, max_tokens, priority, row, stop_at)
        self.row = row
        self.output_tokens = output_tokens
        self.thinking_tokens = thinking_tokens
        self.class_id = class_id
        self.session = row
        self.turn = 0
        self.arrival = self.engine_arrival = self.scheduled = UNSET
        self.first_token = self.first_visible = self.lost_at = UNSET
        self.first_delay = self.visible_delay = self.finish_delay = 0
        """From the end of the step that gave a token to the client's seeing it."""
        self.admitted = False
        """Whether the replica it is on has ever admitted it."""
        self.replica = 0
        self.held = 0
        """Tokens in the cache; while it decodes, when its decoding began."""
        self.since = 0
        """When `held` last changed."""
        self.decode_from = UNSET
        """The replica's count of read steps when decoding began; UNSET = does not decode. With drafts, of all reads."""
        self.weight_from = 0
        self.decode_path: DecodePath | None = None
        """With drafts, in a leaping engine: what reads have given it since then."""
        self.kv_area = 0
        """Token-ticks held so far."""
        self.high_water = 0
        """Most tokens that were ever computed, before a preemption took them."""
        self.hit_tokens = 0
        self.recomputed = 0
        self.discarded = 0
        self.lost_ticks = 0
        self.transferred = False
        """Its prompt's KV came over the wire: the first prefill costs no time here."""
        self.on_end: Callable[[SimRequest, int, int], None] | None = None

    @property
    def seen_visible(self) -> int:
        """When its client sees the first token after the thinking."""
        return self.first_visible if self.first_visible == UNSET else self.first_visible + self.visible_delay

    def record(self, finish: int, reason: int, generated: int) -> tuple[int, ...]:
        """The flat record of one that the engine is done with, in the order of `records.Record`."""
        first = self.first_token
        return (
            self.row, self.arrival, self.engine_arrival, self.scheduled,
            first if first == UNSET else first + self.first_delay, self.seen_visible, finish + self.finish_delay,
            first, finish, self.num_prompt_tokens, generated, min(self.thinking_tokens, generated),
            self.num_preemptions, self.recomputed, self.hit_tokens, self.discarded, self.kv_area // 10**6, reason,
            self.class_id, self.replica, self.session, self.turn, self.lost_ticks,
        )  # fmt: skip
