"""The decoding sequences of an engine in closed form: no work per sequence while steps pass.

With `num_steps` steps taken, a decoding sequence has computed `base + num_steps` tokens. So it takes a block in the
steps s with `(base + s) % block_size == 0`, and its last token is scheduled in the step before
`num_steps == end - 1 - base`.
"""

from __future__ import annotations

from heapq import heappop, heappush

from kvplan.schedulers.leap.state import DECODE, Sequence
from kvplan.schedulers.request import NEVER


class DecodeBatch:
    """Block demand, summed context and next end of all sequences in stage DECODE, and the step counter."""

    __slots__ = ("_ends", "_phases", "block_size", "context", "num_decodes", "num_steps")

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.num_steps = 0
        """`schedule()` calls so far, leapt ones included."""
        self.num_decodes = 0
        self.context = 0
        """Sum of their computed tokens."""
        self._phases = [0] * (2 * block_size)
        """How many take a block in steps i modulo the block size; twice, so that a round from any step is a slice."""
        self._ends: list[tuple[int, int, int, Sequence]] = []
        """Heap of (num_steps once the last token is scheduled, admission, number of its plan with drafts, sequence);
        stale entries are skipped."""

    def next_context(self) -> int:
        """Return what the next step's decodes attend to."""
        return self.context + self.num_decodes

    def start(self, seq: Sequence) -> None:
        """Let a sequence decode from the next step on: all its tokens are computed."""
        seq.stage = DECODE
        seq.base = base = seq.computed - self.num_steps
        self._shift(base, 1)
        self.num_decodes += 1
        self.context += seq.computed
        heappush(self._ends, (seq.end - 1 - base, seq.admission, 0, seq))

    def stop(self, seq: Sequence) -> None:
        """Take a sequence out; its stage is the caller's to set."""
        seq.computed = seq.base + self.num_steps
        self._shift(seq.base, -1)
        self.num_decodes -= 1
        self.context -= seq.computed

    def pass_over(self, seq: Sequence) -> None:
        """Let a sequence miss the step that is being scheduled: it ends one later."""
        self._shift(seq.base, -1)
        seq.base -= 1
        self._shift(seq.base, 1)
        heappush(self._ends, (seq.end - 1 - seq.base, seq.admission, 0, seq))

    def _shift(self, base: int, change: int) -> None:
        phase = -base % self.block_size
        self._phases[phase] += change
        self._phases[phase + self.block_size] += change

    def num_blocks(self) -> int:
        """Return the blocks that they hold."""
        size, steps = self.block_size, self.num_steps
        unused = sum(self._phases[i] * ((i - steps) % size) for i in range(size))
        return (self.context + unused) // size

    def takes_block(self, seq: Sequence) -> bool:
        """Whether a sequence takes a block in the next step."""
        return (seq.base + self.num_steps) % self.block_size == 0

    def next_demand(self) -> int:
        """Return the blocks that the next step's decodes take."""
        return self._phases[self.num_steps % self.block_size]

    def demand(self, num_steps: int) -> int:
        """Return the blocks that the decodes of the next `num_steps` steps take."""
        rounds, rest = divmod(num_steps, self.block_size)
        i = self.num_steps % self.block_size
        return rounds * self.num_decodes + sum(self._phases[i : i + rest])

    def steps_that_fit(self, num_free: int) -> int:
        """Return for how many steps so many free blocks last."""
        size, phases = self.block_size, self._phases
        rounds, free = divmod(num_free, self.num_decodes)
        steps = rounds * size
        while True:
            free -= phases[(self.num_steps + steps) % size]
            if free < 0:
                return steps
            steps += 1

    def next_end(self) -> int:
        """Return what `num_steps` will be once the next last token is scheduled."""
        ends = self._ends
        while ends:
            when, admission, _, seq = ends[0]
            if seq.admission == admission and seq.stage is DECODE and seq.end - 1 - seq.base == when:
                return when
            heappop(ends)
        return NEVER

    def surprises(self) -> bool:
        """Whether the next to end does so alone and by a stop token: under async scheduling it decodes once more."""
        ends = self._ends
        return bool(ends) and not ends[0][3].sure_end and all(end[0] > ends[0][0] for end in ends[1:3])

    def pop_ended(self) -> list[Sequence]:
        """Return, in order of admission, the sequences whose last token has been scheduled."""
        ended: list[Sequence] = []
        ends, now = self._ends, self.num_steps
        while ends and ends[0][0] <= now and self.next_end() <= now:
            ended.append(heappop(ends)[3])
        return ended
