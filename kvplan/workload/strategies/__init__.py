"""Reasoning strategies that branch, prune, vote, revise and stop: plain generators, no clock, no engine."""

from kvplan.workload.strategies.session import BranchOutcome, Launch, Orders, Problem, Sampler, Session
from kvplan.workload.strategies.strategy import ALL, RIGHT, Answer, Ask, Branch, FinishedBranch, Strategy

__all__ = [
    "ALL",
    "RIGHT",
    "Answer",
    "Ask",
    "Branch",
    "BranchOutcome",
    "FinishedBranch",
    "Launch",
    "Orders",
    "Problem",
    "Sampler",
    "Session",
    "Strategy",
]
