"""What the KV of decoding requests holds - prompt, thinking, answer - as sums that need no look at any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kvplan.simulation.sim_request import SimRequest


class HeldTokens(NamedTuple):
    """KV in tokens, by what it holds."""

    prompt: int
    shared: int
    """Prompt found in the cache."""
    thinking: int
    answer: int


def held_tokens(request: SimRequest, held: int) -> HeldTokens:
    """What the `held` first tokens of one request are."""
    prompt, hit, hidden = request.num_prompt_tokens, request.hit_tokens, request.thinking_tokens
    if held < prompt + hidden:
        prompt = min(held, prompt)
        hidden, hit = held - prompt, min(hit, prompt)
    return HeldTokens(prompt - hit, hit, hidden, held - prompt - hidden)


@dataclass(slots=True)
class GrowingTokens:
    """All requests that decode, together: each holds its prompt and one token more per read step.

    Of thinking first; from the read that completes the thinking on (`answers`), of its answer.
    """

    prompt: int = 0
    shared: int = 0
    thinking: int = 0
    """Of those that think, less the reads so far of each; of the others, all of it."""
    answer: int = 0
    """Of those that answer, less the reads so far of each."""
    num_thinking: int = 0
    num_answering: int = 0

    def at(self, num_reads: int) -> HeldTokens:
        """All of it after so many reads."""
        thinking = self.thinking + self.num_thinking * num_reads
        return HeldTokens(self.prompt, self.shared, thinking, self.answer + self.num_answering * num_reads)

    def join(self, request: SimRequest, held: int, num_reads: int) -> None:
        """A request decodes from now on."""
        self._add(request, held, num_reads, 1)

    def leave(self, request: SimRequest, held: int, num_reads: int) -> None:
        """A request decodes no longer."""
        self._add(request, held, num_reads, -1)

    def answers(self, num_reads: int) -> None:
        """The read of this number completed somebody's thinking: what that one gets from now on is its answer."""
        self.num_thinking -= 1
        self.num_answering += 1
        self.thinking += num_reads
        self.answer -= num_reads

    def _add(self, request: SimRequest, held: int, num_reads: int, sign: int) -> None:
        prompt, hit, hidden = request.num_prompt_tokens, request.hit_tokens, request.thinking_tokens
        self.prompt += sign * (prompt - hit)
        self.shared += sign * hit
        generated = held - prompt
        if generated < hidden:
            self.num_thinking += sign
            self.thinking += sign * (generated - num_reads)
        else:
            self.num_answering += sign
            self.thinking += sign * hidden
            self.answer += sign * (generated - hidden - num_reads)
