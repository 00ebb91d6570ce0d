"""Logical against physical KV of branches that are alive at once: what each sharing rule saves.

A trie of contents: two branches share a token where everything up to it is equal. Knows tokens and block sizes;
does not know bytes, eviction or time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from kvplan.ground.content import Content, Segment, length_of, merge_segments, output_of
from kvplan.workload.strategies.session import Launch


class Footprint(NamedTuple):
    """KV of some live branches, in tokens and in blocks."""

    logical_tokens: int
    """Every branch counted whole."""
    physical_tokens: int
    """Every distinct token once: sharing at page size 1."""
    none_blocks: int
    """No sharing."""
    full_block_blocks: int
    """vLLM V1: full blocks are shared through the prefix cache; of a prompt that is all cached and aligned the
    last block is computed again, a copy per branch."""
    copy_on_write_blocks: int
    """A fork also shares the partly filled block until it writes."""

    def blocks(self, sharing: str) -> int:
        """Blocks under a rule: none, full_block, copy_on_write, or token (page size 1)."""
        if sharing == "token":
            return self.physical_tokens
        return int(getattr(self, f"{sharing}_blocks"))


class Held(NamedTuple):
    """One live sequence: its prompt, and how much it generated so far."""

    prompt: Content
    output: str
    num_output_tokens: int

    @classmethod
    def of(cls, launch: Launch, num_output_tokens: int | None = None) -> Held:
        """A launched branch with all its tokens, or the first `num_output_tokens` of them."""
        tokens = launch.tokens if num_output_tokens is None else num_output_tokens
        return cls(launch.prompt, output_of(launch.request_id), tokens)

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return length_of(self.prompt)

    def content(self) -> Content:
        """Prompt and output, neighbours joined."""
        return merge_segments((*self.prompt, Segment(self.output, self.num_output_tokens)))


_Edge = tuple[int, int, str, int]  # parent edge, tokens into it, stream, start


class _Trie:
    """Edges of contents, each with its start position and its longest length."""

    def __init__(self) -> None:
        self.ids: dict[_Edge, int] = {}
        self.start: list[int] = []
        self.length: list[int] = []
        self.leaves: list[Counter[int]] = []
        """Per edge: how many child edges leave it after so many tokens."""

    def insert(self, content: Iterable[Segment]) -> None:
        parent, offset, position = -1, 0, 0
        for s in content:
            edge = (parent, offset, s.name, s.start)
            if edge not in self.ids:
                self.ids[edge] = len(self.start)
                self.start.append(position)
                self.length.append(0)
                self.leaves.append(Counter())
                if parent >= 0:
                    self.leaves[parent][offset] += 1
            parent, offset = self.ids[edge], s.length
            self.length[parent] = max(self.length[parent], s.length)
            position += s.length


def footprint(held: Iterable[Held], block_size: int = 16) -> Footprint:
    """What these branches hold, with and without sharing.

    >>> prompt = (Segment("p", 4000),)
    >>> footprint(Held(prompt, f"out:{i}", 1000) for i in range(8))
    Footprint(logical_tokens=40000, physical_tokens=12000, none_blocks=2504, full_block_blocks=761, \
copy_on_write_blocks=754)
    """
    trie, live = _Trie(), list(held)
    totals = [h.num_prompt_tokens + h.num_output_tokens for h in live]
    for h in live:
        trie.insert(h.content())
    spans = [(start, start + length) for start, length in zip(trie.start, trie.length, strict=True)]
    full = sum(end // block_size - start // block_size for start, end in spans)
    tails = sum(total % block_size > 0 for total in totals)
    aligned = Counter(h.prompt for h in live if h.prompt and h.num_prompt_tokens % block_size == 0)
    again = sum(n - 1 for n in aligned.values())
    touched = sum(-(-end // block_size) - start // block_size for start, end in spans)
    continued = sum(  # the first child of an edge's end goes on in the same block: nothing is copied
        bool(leaves[length] and (start + length) % block_size)
        for start, length, leaves in zip(trie.start, trie.length, trie.leaves, strict=True)
    )
    return Footprint(
        sum(totals),
        sum(trie.length),
        sum(-(-total // block_size) for total in totals),
        full + tails + again,
        touched - continued,
    )
