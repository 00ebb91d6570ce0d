"""What the leap keeps: contents, blocks as extents, sequences, and a step while it is decided. Facts, no policy.

A `Trunk` is the content, future output included, of the request that was the first to leave its parent at some depth;
what a request computes after one admission is a `BlockRun`, cut into `Piece`s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from kvplan.ground.content import Content
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


@dataclass(slots=True, eq=False, repr=False)
class Trunk:
    """The content of its owner from depth `start` on; other requests leave it at their own depths."""

    parent: Trunk | None
    key: ContentKey
    owner: Request | None
    children: dict[ContentKey, Trunk] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    """All copies of this content: hashed or still growing, held or free."""
    refs: int = 0
    """Pieces, children, and requests whose path ends here; at zero the content is forgotten."""
    hold: Hold | None = None
    """The hit on it that was held last, as long as somebody holds it."""


Path = tuple[tuple[Trunk, int, int], ...]
"""By depth: a trunk, and the depths `lo .. hi - 1` at which a request's content is the trunk's."""


Mark = tuple[int, int | None, int]
"""(hi, when, base): a run's blocks below depth `hi` were hashed `when`, or (None) one by one, decoding from `base`."""


@dataclass(slots=True, eq=False, repr=False)
class BlockRun:
    """The blocks that a request took itself after one admission."""

    owner: Sequence | None
    admission: int
    pieces: list[Piece] = field(default_factory=list)
    """By depth; what was evicted is missing."""
    marks: list[Mark] = field(default_factory=list)
    base: int = 0
    """The owner's `base` as it decoded; hashing beyond the marks follows from it."""
    plans: list[Any] = field(default_factory=list)
    """With drafts: what its decodes were; hashing beyond the marks follows from them."""


@dataclass(slots=True, eq=False, repr=False)
class Piece:
    """Depths `lo .. hi - 1` of a run on one trunk, held `refs` times; in the free queue when nobody holds it."""

    run: BlockRun
    trunk: Trunk
    lo: int
    hi: int
    refs: int
    next: Piece = field(init=False)
    prev: Piece = field(init=False)


class Hit(NamedTuple):
    """Cached blocks of another run that a request can hold."""

    run: BlockRun
    lo: int
    hi: int


@dataclass(slots=True, eq=False, repr=False)
class Hold:
    """A hit that requests hold, and with it all hits before it: those with a common beginning hold that once."""

    before: Hold | None
    hit: Hit
    trunk: Trunk
    """Where the hit lies."""
    refs: int = 0
    """Requests whose last hit it is, and holds right behind it."""


@dataclass(slots=True, eq=False, repr=False)
class Sequence:
    """A live request. Token counts are positions: `computed` tokens have KV, `end` is prompt plus all output."""

    request: Request
    key: tuple[int, int]
    """Priority and order of arrival."""
    stage: Stage = WAITING
    end: int = field(init=False)
    sure_end: bool = field(init=False)
    """Whether it ends by `max_tokens`, which the scheduler can foresee, not by a stop token."""
    num_tokens: int = field(init=False)
    """Prompt and sampled tokens; kept while it does not decode."""
    known: int = field(init=False)
    """Tokens known when its prefill began, or when a step last passed it over."""
    computed: int = 0
    base: int = 0
    cacheable: int = NEVER
    """Tokens from the start whose blocks may be cached."""
    admission: int = 0
    """Counts admissions; the order of `running`."""
    path: Path = ()
    run: BlockRun | None = None
    hold: Hold | None = None
    """The last of the hits that it holds: stretches of other runs."""

    def __post_init__(self) -> None:
        request = self.request
        self.num_tokens = self.known = request.num_prompt_tokens
        if request.output_kv == "never_cache":
            self.cacheable = request.num_prompt_tokens
        stop_at = request.stop_at
        self.sure_end = stop_at is None or stop_at >= request.max_tokens
        outputs = request.max_tokens if stop_at is None or self.sure_end else stop_at
        self.end = request.num_prompt_tokens + outputs

    def computed_at(self, num_steps: int) -> int:
        """Tokens computed once the engine has taken `num_steps` steps."""
        return self.base + num_steps if self.stage is DECODE else self.computed


InFlight = tuple[list[Sequence], list[Sequence]]
"""What the tokens of one scheduled step will tell when they are read: whose prefill they end, and who ends."""
NO_NEWS: InFlight = ([], [])
"""Shared; nobody may append to it."""


@dataclass(slots=True, eq=False, repr=False)
class OpenStep:
    """One step while it is decided."""

    budget: int
    """Tokens left to give out."""
    chunk: int
    """Cap on one prompt's tokens; 0 = none."""
    num_decodes: int = 0
    context: int = 0
    chunks: list[Chunk] = field(default_factory=list)
    completed: list[Sequence] = field(default_factory=list)
    """Running requests whose last chunk is in this step."""
    first_tokens: list[Sequence] = field(default_factory=list)
    admitted: list[tuple[Request, int]] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)

    def chunk_of(self, num_tokens: int) -> int:
        """Return how many of the tokens a prompt still wants it can have in one step, budget apart."""
        return min(num_tokens, self.chunk or num_tokens)
