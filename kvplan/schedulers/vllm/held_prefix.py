"""What an engine holds of a prompt, tier by tier: what it would tell a router by its KV cache events."""

from __future__ import annotations

from typing import NamedTuple

from kvplan.schedulers.request import Request
from kvplan.schedulers.vllm.block_pool import group_hash
from kvplan.schedulers.vllm.offloading.policies import offload_key
from kvplan.schedulers.vllm.offloading.tiering import TieringOffloadingManager
from kvplan.schedulers.vllm.scheduler import Scheduler


class HeldPrefix(NamedTuple):
    """Tokens of a prompt's longest beginning that lies somewhere in an engine, each block in the nearest place."""

    gpu: int = 0
    cpu: int = 0
    storage: int = 0


def held_prefix(scheduler: Scheduler, request: Request) -> HeldPrefix:
    """Look a prompt up without any effect; of several groups, in the first that keeps every token.

    A request that is here already must not be asked for.
    """
    managers = scheduler.kv_cache_manager.coordinator.managers
    group = next((m for m in managers if m.group.kind == "full"), managers[0])
    hasher, pool = scheduler.kv_cache_manager.hasher, scheduler.kv_cache_manager.block_pool
    tier = scheduler.loads.connector if scheduler.loads is not None else None
    per_chunk = tier.config.blocks_per_chunk if tier is not None else 1
    hashes = hasher.block_hashes(request, hasher.num_hashed_tokens(request))
    held = [0, 0, 0]
    for i in range(len(hashes) // group.scale):
        name = hashes[(i + 1) * group.scale - 1]
        end = (i // per_chunk + 1) * per_chunk * group.scale
        if pool.cached_block_hash_to_block.get_one_block(group_hash(name, group.group_id)) is not None:
            place = 0
        elif tier is None or end > len(hashes):
            break
        else:
            key = offload_key(hashes[end - 1], group.group_id, end * hasher.hash_block_size)
            chunk, manager = tier.manager.policy.get(key), tier.manager
            below = manager.secondary_tiers if isinstance(manager, TieringOffloadingManager) else ()
            if chunk is not None and chunk.is_ready:
                place = 1
            elif any(key in files.chunks for files in below):
                place = 2
            else:
                break
        held[place] += group.block_size
    hasher.forget(request.request_id)
    return HeldPrefix(*held)
