"""Commands of several machines that start one deployment together, pasted behind each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kvplan.engines.flags import EngineArgs
from kvplan.engines.load_balancing import has_own_command, replicas_started
from kvplan.ground.errors import KvplanError
from kvplan.ground.tables import counted

OF_ONE_COMMAND = (
    *("node_rank", "headless", "api_server_count", "data_parallel_rank"),
    *("data_parallel_start_rank", "data_parallel_size_local"),
)
"""Fields that are a command's own."""
SHARED = (
    *(
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "prefill_context_parallel_size",
        "data_parallel_size",
    ),
    *("nnodes", "enable_expert_parallel", "kv_transfer_config"),
)
"""Fields that are one deployment's: vLLM refuses ranks that differ in them, or they say which of two it is."""


class Joint(NamedTuple):
    """One deployment of several commands."""

    first: int
    """Place of the command that starts the first replica."""
    args: EngineArgs
    members: tuple[int, ...]
    notes: tuple[str, ...]


def join(commands: Sequence[EngineArgs]) -> Joint | None:
    """The deployment that the first command starts with others, or None where it starts one of its own.

    Raises:
        KvplanError: two of them start the same part.
    """
    key = [getattr(commands[0], name) for name in SHARED]
    members = [i for i, told in enumerate(commands) if [getattr(told, name) for name in SHARED] == key]
    parts = [commands[i] for i in members]
    if len(parts) < 2 or sum(not _is_part(told) for told in parts) > 1:
        return None
    started = [_started(told) for told in parts]
    taken = [rank for ranks in started for rank in ranks]
    what, whole = (
        ("machine", parts[0].nnodes) if parts[0].nnodes > 1 else ("replica", parts[0].data_parallel_size)
    )
    if twice := [rank for rank in taken if taken.count(rank) > 1]:
        raise KvplanError(
            f"two of the commands start {what} {twice[0]}; --data-parallel-size-local says how many each has"
        )
    first = min(range(len(parts)), key=lambda i: (parts[i].headless, *started[i][:1]))
    args = parts[first]
    if args.nnodes == 1 and not has_own_command(args):
        args = args.model_copy(update={"data_parallel_size_local": max(map(len, started)) or None})
    ranges = ", ".join(_said(ranks) for ranks in started)
    notes = [f"{counted(len(parts), 'command')} of one deployment: {what}s {ranges}"]
    if missing := sorted(set(range(whole)) - set(taken)):
        notes.append(f"started by none of these commands, so vLLM waits for them: {what}s {_gaps(missing)}")
    if other := _differing(parts):
        notes.append(f"the commands differ in {', '.join(other)}: planned as the first machine's")
    return Joint(members[first], args, tuple(members), tuple(notes))


def _is_part(told: EngineArgs) -> bool:
    ranks = (told.data_parallel_start_rank, told.data_parallel_rank)
    return told.headless or told.node_rank > 0 or any(rank is not None for rank in ranks)


def _started(told: EngineArgs) -> range:
    """Machines or replicas that a command starts."""
    return range(told.node_rank, told.node_rank + 1) if told.nnodes > 1 else replicas_started(told)


def _said(ranks: range) -> str:
    if not ranks:
        return "none"
    return f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def _gaps(missing: Sequence[int]) -> str:
    """Numbers as runs: 2-3, 7."""
    starts = [n for n in missing if n - 1 not in missing]
    ends = [n for n in missing if n + 1 not in missing]
    return ", ".join(_said(range(a, b + 1)) for a, b in zip(starts, ends, strict=True))


def _differing(parts: Sequence[EngineArgs]) -> list[str]:
    names = [name for name in EngineArgs.model_fields if name not in OF_ONE_COMMAND]
    return [
        f"--{name.replace('_', '-')}"
        for name in names
        if len({str(getattr(told, name)) for told in parts}) > 1
    ]
