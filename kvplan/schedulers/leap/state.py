"""What the leap keeps: contents, blocks as extents, sequences, and a step while it is decided. Facts, no policy.

A `Trunk` is the content, future output included, of the request that was the first to leave its parent at some depth;
what a request computes after one admission is a `BlockRun`, cut into `Piece`s.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from kvplan.content import Content
from kvplan.schedulers.protocol import Chunk
from kvplan.schedulers.request import NEVER, Request


class Stage(IntEnum):
    """Where a sequence is. A decoding one is never touched between changes: `computed = base + num_steps`."""

    WAITING = 0
    PREFILL = 1
    DECODE = 2
    ENDING = 3
    """Asynchronous scheduling: surely ended by the step in flight; still in `running`, no longer scheduled."""
    GONE = 4


WAITING, PREFILL, DECODE, ENDING, GONE = Stage
"""The stages by themselves: looking them up in the class each time would be a tenth of a leap."""


ContentKey = tuple[int, str, int] | tuple[int, Content]
"""A depth and what the block there holds: where in one stream it begins, or its pieces of several."""


class Trunk:
    """The content of its owner from depth `start` on; other requests leave it at their own depths."""

    __slots__ = ("children", "key", "owner", "parent", "pieces", "refs")

    def __init__(self, parent: Trunk | None, key: ContentKey, owner: Request | None) -> None:
        self.parent = parent
        self.key = key
        self.owner = owner
        self.children: dict[ContentKey, Trunk] = {}
        self.pieces: list[Piece] = []
        """All copies of this content: hashed or still growing, held or free."""
        self.refs = 0
        """Pieces, children, and requests whose path ends here; at zero the content is forgotten."""


Path = tuple[tuple[Trunk, int, int], ...]
"""By depth: a trunk, and the depths `lo .. hi - 1` at which a request's content is the trunk's."""


Mark = tuple[int, int | None, int]
"""(hi, when, base): a run's blocks below depth `hi` were hashed `when`, or (None) one by one, decoding from `base`."""


class BlockRun:
    """The blocks that a request took itself after one admission."""

    __slots__ = ("admission", "base", "marks", "owner", "pieces")

    def __init__(self, owner: Sequence) -> None:
        self.owner: Sequence | None = owner
        self.admission = owner.admission
        self.pieces: list[Piece] = []
        """By depth; what was evicted is missing."""
        self.marks: list[Mark] = []
        self.base = 0
        """The owner's `base` as it decoded; hashing beyond the marks follows from it."""


class Piece:
    """Depths `lo .. hi - 1` of a run on one trunk, held `refs` times; in the free queue when nobody holds it."""

    __slots__ = ("hi", "lo", "next", "prev", "refs", "run", "trunk")

    next: Piece
    prev: Piece

    def __init__(self, run: BlockRun, trunk: Trunk, lo: int, hi: int, refs: int) -> None:
        self.run = run
        self.trunk = trunk
        self.lo = lo
        self.hi = hi
        self.refs = refs


class Hit(NamedTuple):
    """Cached blocks of another run that a request can hold."""

    run: BlockRun
    lo: int
    hi: int


class Sequence:
    """A live request. Token counts are positions: `computed` tokens have KV, `end` is prompt plus all output."""

    __slots__ = (
        "admission",
        "base",
        "cacheable",
        "computed",
        "end",
        "hit_tokens",
        "key",
        "known",
        "num_tokens",
        "path",
        "request",
        "run",
        "stage",
        "sure_end",
        "table",
    )

    def __init__(self, request: Request, key: tuple[int, int]) -> None:
        self.request = request
        self.key = key
        """Priority and order of arrival."""
        self.stage: Stage = WAITING
        self.end = 0
        self.sure_end = True
        """Whether it ends by `max_tokens`, which the scheduler can foresee, not by a stop token."""
        self.num_tokens = request.num_prompt_tokens
        """Prompt and sampled tokens; kept while it does not decode."""
        self.known = self.num_tokens
        """Tokens known when its prefill began, or when a step last passed it over."""
        self.computed = 0
        self.base = 0
        self.cacheable = request.num_prompt_tokens if request.output_kv == "never_cache" else NEVER
        """Tokens from the start whose blocks may be cached."""
        self.admission = 0
        """Counts admissions; the order of `running`."""
        self.hit_tokens = 0
        self.path: Path = ()
        self.run: BlockRun | None = None
        self.table: list[Hit] = []
        """Hits that it holds, by depth: stretches of other runs."""
        self.set_end()

    def set_end(self) -> None:
        """Read from the request how it will end."""
        request = self.request
        stop_at = request.stop_at
        self.sure_end = stop_at is None or stop_at >= request.max_tokens
        outputs = request.max_tokens if stop_at is None or self.sure_end else stop_at
        self.end = request.num_prompt_tokens + outputs

    def computed_at(self, num_steps: int) -> int:
        """Tokens computed once the engine has taken `num_steps` steps."""
        return self.base + num_steps if self.stage is DECODE else self.computed

    def __lt__(self, other: Sequence) -> bool:
        return self.key < other.key


InFlight = tuple[list[Sequence], list[Sequence]]
"""What the tokens of one scheduled step will tell when they are read: whose prefill they end, and who ends."""
NO_NEWS: InFlight = ([], [])
"""Shared; nobody may append to it."""


class OpenStep:
    """One step while it is decided."""

    __slots__ = (
        "admitted",
        "budget",
        "chunk",
        "chunks",
        "completed",
        "context",
        "first_tokens",
        "num_decodes",
        "preempted",
    )

    def __init__(self, budget: int, chunk: int) -> None:
        self.budget = budget
        """Tokens left to give out."""
        self.chunk = chunk
        """Cap on one prompt's tokens; 0 = none."""
        self.num_decodes = 0
        self.context = 0
        self.chunks: list[Chunk] = []
        self.completed: list[Sequence] = []
        """Running requests whose last chunk is in this step."""
        self.first_tokens: list[Sequence] = []
        self.admitted: list[tuple[Request, int]] = []
        self.preempted: list[Request] = []

    def chunk_of(self, num_tokens: int) -> int:
        """Return how many of the tokens a prompt still wants it can have in one step, budget apart."""
        return min(num_tokens, self.chunk or num_tokens)
