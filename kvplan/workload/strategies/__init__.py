"""Reasoning strategies that branch, prune, vote, revise and stop: plain generators, no clock, no engine."""

from kvplan.workload.strategies.session import Launch, Orders, Outcome, Problem, Sampler, Session
from kvplan.workload.strategies.strategy import ALL, RIGHT, Answer, Ask, Branch, Finished, Plan

__all__ = [
    "ALL",
    "RIGHT",
    "Answer",
    "Ask",
    "Branch",
    "Finished",
    "Launch",
    "Orders",
    "Outcome",
    "Plan",
    "Problem",
    "Sampler",
    "Session",
]
