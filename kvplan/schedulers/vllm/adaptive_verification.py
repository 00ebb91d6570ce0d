"""Which drafts of a step are verified, where confidences and costs decide: vLLM's `AdaptiveVerificationManager`.

Confidences are those of a drafter that knows the chance of each place and nothing of the single draft. vLLM reads them
two steps late: a request that came in with the last step, or with this one, counts as sure.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvplan.formulas.verification import Floats, admitted, draft_budget
from kvplan.schedulers.vllm.output import SchedulerOutput


class VerificationCosts(NamedTuple):
    """What vLLM's profile of dummy steps at start-up says."""

    draft: Floats
    """Of drafting, by requests."""
    verify: Floats
    """Of a step, by tokens."""
    most_logits: int
    """Rows of logits that are verified together at most."""


class AdaptiveVerification:
    """The decision of each step of one engine."""

    def __init__(self, costs: VerificationCosts, survival: tuple[float, ...]) -> None:
        """`survival`: chance that the first so many drafts are all right."""
        self.costs, self.survival = costs, np.array(survival)
        self._steady: dict[tuple[int, int], list[int]] = {}

    def verified(self, output: SchedulerOutput, came_before: Collection[str]) -> dict[str, int]:
        """Drafts of a step that are verified, by request; `came_before` came in with the step before."""
        ids, drafts = list(output.num_scheduled_tokens), output.num_draft_tokens
        counts = np.array([drafts.get(i, 0) for i in ids])
        new = [i in output.admitted for i in ids]
        sure = [is_new or i in came_before for i, is_new in zip(ids, new, strict=True)]
        num_others = output.total_num_scheduled_tokens - int(counts.sum())
        num_samples = len(ids) - len(output.prefill_chunks)
        found = self._admitted(counts, np.array(sure), np.array(new), num_others, num_samples)
        return {i: n for i, n in zip(ids, found, strict=True) if i in drafts}

    def steady(self, num_requests: int, num_drafts: int) -> list[int]:
        """The same where all decode with so many drafts each and nobody came in, by place in the batch."""
        key = num_requests, num_drafts
        if key not in self._steady:
            nobody, counts = np.zeros(num_requests, bool), np.full(num_requests, num_drafts)
            self._steady[key] = self._admitted(counts, nobody, nobody, num_requests, num_requests)
        return self._steady[key]

    def _admitted(
        self,
        drafts: NDArray[np.int64],
        sure: NDArray[np.bool_],
        new: NDArray[np.bool_],
        num_others: int,
        num_samples: int,
    ) -> list[int]:
        places = np.arange(len(self.survival))
        stale = np.where(sure[:, None], 1.0, self.survival)[places[None, :] < drafts[:, None]]
        most = min(len(stale), max(0, self.costs.most_logits - len(drafts)))
        best = np.sort(stale)[::-1][:most]
        draft, verify = self.costs.draft[len(drafts)], self.costs.verify
        budget = draft_budget(best, num_samples, num_others, float(draft), verify)
        survival = np.where(new[:, None], 1.0, self.survival)
        found: list[int] = admitted(survival, drafts, budget).tolist()
        return found
