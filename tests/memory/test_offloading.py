"""`--kv-offloading-size`: slots as vLLM counts them, tokens, and the length from which loading beats computing."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from math import inf

import numpy as np
import pytest

from kvplan.engines.command import read_command
from kvplan.engines.flags import EngineArgs
from kvplan.formulas.offloading import break_even_tokens, tier_chunks
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.ground.units import GiB
from kvplan.memory.answers import Plan
from kvplan.memory.forward import estimate
from kvplan.memory.offloading import Lengths, OffloadTier, bytes_to_copy, copied_groups
from kvplan.profiles.host_links import find_drive, find_host_link

VLLM_SLOTS = [
    (64 * 2**30, 16 * 131072, 1, 1, 32768, 2097152),
    (64 * 2**30, 16 * 131072, 4, 2, 4096, 16777216),
    (10 * 2**30, 70000, 3, 4, 12725, 843776),
    (100 * 2**30, 16 * 576 * 2 * 61, 1, 1, 95325, 1126400),
    (100 * 2**30, 16 * 576 * 2 * 61, 1, 8, 11937, 8994816),
    (2**30, 1001, 7, 3, 43690, 24576),
]
"""(bytes, block bytes, blocks a chunk, copies, slots, slot bytes): what vLLM 0.32.0's own CPUOffloadingSpec says; the
fourth is its replicated layout of eight ranks."""


@pytest.mark.parametrize("case", VLLM_SLOTS, ids=str)
def test_slots_are_vllms(case: tuple[int, ...]) -> None:
    """A slot is a pool block of every rank, rounded up to 4,096 bytes."""
    size, block, per_chunk, copies, slots, _ = case
    assert tier_chunks(size, block, per_chunk, copies) == slots


def plan(model: str = "Qwen/Qwen3-8B", gpu: str = "h100", **flags: object) -> Plan:
    stated = {"kv_offloading_size": 64, "input_len": "8K", "output_len": "1K"} | flags
    return estimate(model, gpu, **stated)  # type: ignore[arg-type]


def test_one_group_holds_what_its_slots_hold() -> None:
    """Full attention: slots x block tokens; twice the ranks, as many slots for the same GiB, since each keeps half."""
    one, two = plan().offload, plan(tensor_parallel_size=2).offload
    assert one is not None and two is not None  # noqa: PT018
    assert one.tokens == (one.num_chunks * 16, one.num_chunks * 16)
    assert one.num_chunks == 64 * GiB // (16 * 147456) == two.num_chunks
    assert (one.num_copies, two.num_copies) == (1, 2)


def test_latents_are_kept_once() -> None:
    """MLA over tensor-parallel ranks alone: one copy; with pipeline stages each rank keeps its own."""
    once = plan("deepseek-ai/DeepSeek-V3", "h200", tensor_parallel_size=8).offload
    staged = plan("deepseek-ai/DeepSeek-V3", "h200", tensor_parallel_size=8, pipeline_parallel_size=2).offload
    assert once is not None and staged is not None  # noqa: PT018
    assert (once.num_copies, staged.num_copies) == (1, 16)


def test_windows_take_slots_too() -> None:
    """Gemma 3: a token stored in all seven groups takes seven times the slots of one stored where all is kept."""
    found = plan("google/gemma-3-27b-it", tensor_parallel_size=2)
    tier = found.offload
    assert tier is not None
    low, high = tier.tokens
    assert high == tier.num_chunks * 16
    assert low == int(tier.num_chunks * 16 / len(found.shape.groups))


def test_a_load_copies_windows_only_once() -> None:
    """Beyond the window a longer prefix costs what full attention adds."""
    shape = plan("google/gemma-3-27b-it", tensor_parallel_size=2).shape
    full = next(g for g in shape.groups if g.kind.is_growing)
    assert bytes_to_copy(shape, 16384) - bytes_to_copy(shape, 8192) == 512 * full.bytes_per_block


def test_padding_is_not_copied() -> None:
    """A state's page is padded to the attention's; a copy leaves that out. Attention's own pages have none."""
    shape = plan("Qwen/Qwen3-Next-80B-A3B-Instruct", tensor_parallel_size=4).shape
    states = 32 // 4 * 128 * 128 * 2
    convolution = 3 * (2 * 16 * 128 + 32 * 128) // 4 * 2
    for group in shape.groups:
        if group.kind.is_growing:
            assert group.copied_bytes == group.bytes_per_block == 12 * 272 * 2 * 256 * 2
        else:
            assert group.copied_bytes == 12 * (states + convolution) < group.bytes_per_block


def test_a_short_group_copies_its_own_layers() -> None:
    """Gemma 3: of the pool's blocks of ten layers, a window group of eight copies eight."""
    shape = plan("google/gemma-3-27b-it", tensor_parallel_size=2).shape
    assert {(g.num_layers, g.copied_bytes) for g in shape.groups} == {(n, n * 65536) for n in (8, 9, 10)}
    assert shape.bytes_per_block == 10 * 65536


def test_layers_packed_into_a_block_are_copied_with_it() -> None:
    """DeepSeek V4: pages of several sizes lie together, so every group's block moves the pool's whole block."""
    shape = plan("deepseek-ai/DeepSeek-V4-Flash", "h200", tensor_parallel_size=8).shape
    assert {group.copied_bytes for group in shape.groups} == {shape.bytes_per_block}


@pytest.mark.parametrize(("size", "factor"), [(64, 2.0), (200, 1.5)])
def test_more_memory_holds_more(size: float, factor: float) -> None:
    """Slots grow with the size."""
    small, large = (plan(kv_offloading_size=n).offload for n in (size, size * factor))
    assert small is not None and large is not None  # noqa: PT018
    assert large.num_chunks == pytest.approx(factor * small.num_chunks, rel=1e-4)


def test_the_first_length_that_pays() -> None:
    """Below it computing is sooner, from it on loading is; the answer is the first whole unit."""
    reload, compute = (lambda n: 0.03 + n / 2e5), (lambda n: n / 2e4 + (n / 1e5) ** 2)
    first = break_even_tokens(reload, compute, 16, 65536)
    assert first is not None
    assert reload(first) <= compute(first)
    assert reload(first - 16) > compute(first - 16)


def test_doubt_widens_the_range() -> None:
    """A slow link, fast kernels and a full batch ask for longer prefixes than the other ends do."""
    tier = plan().offload
    assert tier is not None
    low, high = tier.break_even
    assert low is not None and high is not None  # noqa: PT018
    assert low < high


def test_a_slow_link_buys_nothing_and_says_so() -> None:
    """Where computing is sooner than loading at every length, the answer is that no tier helps."""
    tier = plan().offload
    assert tier is not None
    assert break_even_tokens(lambda n: n / 1e4, lambda n: n / 2e4, 16, 9216) is None
    never = replace(tier, break_even=Lengths(None, None))
    assert never.lines(9216, 1.0)[1].startswith("It buys nothing: up to 9,216 tokens")


def test_a_tier_no_larger_than_the_pool_buys_next_to_nothing() -> None:
    """The tier holds copies of what the GPU holds."""
    assert "It buys next to nothing" in plan(kv_offloading_size=4).text()
    assert "loads sooner" in plan(kv_offloading_size=256).text()


def test_json_has_the_tier_or_null() -> None:
    """`kv.offload` is there whatever was asked."""
    without = estimate("Qwen/Qwen3-8B", "h100").to_dict()["kv"]
    told = plan().to_dict()["kv"]
    assert isinstance(without, dict) and isinstance(told, dict)  # noqa: PT018
    assert without["offload"] is None
    assert {"num_chunks", "tokens", "break_even_tokens", "sources"} <= set(told["offload"])


def test_other_tiers_are_refused_by_name() -> None:
    """An outside server's tier, and other engines' own."""
    with pytest.raises(KvplanError, match="lmcache"):
        plan(kv_offloading_backend="lmcache")
    with pytest.raises(KvplanError, match="sglang has a host tier of its own"):
        plan(engine="sglang")


def told_as_json(**extra: object) -> str:
    config = {"cpu_bytes_to_use": 64 * GiB, **extra}
    told = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": config}
    return json.dumps(told)


def tiered(model: str = "Qwen/Qwen3-8B", locality: str | None = None, **extra: object) -> OffloadTier:
    """A plan with files below host memory, all of it told as vLLM's own JSON."""
    tiers = [{"type": "fs", "root_dir": "/files", "locality": locality}]
    text = told_as_json(spec_name="TieringOffloadingSpec", secondary_tiers=tiers, **extra)
    found = plan(model, kv_offloading_size=None, kv_transfer_config=text).offload
    assert found is not None
    return found


def test_the_connectors_json_says_what_the_flag_says() -> None:
    """`cpu_bytes_to_use` and --kv-offloading-size are one figure; the flag comes before the JSON, as in vLLM."""
    flag = plan().offload
    told = plan(kv_offloading_size=None, kv_transfer_config=told_as_json()).offload
    both = plan(kv_offloading_size=32, kv_transfer_config=told_as_json()).offload
    assert flag is not None and told is not None and both is not None  # noqa: PT018
    assert told.to_dict() == flag.to_dict()
    assert both.num_chunks == flag.num_chunks // 2


def test_other_connectors_and_tiers_are_refused_by_name() -> None:
    """What vLLM would start and is not planned, and what vLLM itself refuses."""
    with pytest.raises(
        KvplanError, match="connector NixlConnector: of vLLM's, OffloadingConnector is planned"
    ):
        plan(kv_transfer_config='{"kv_connector": "NixlConnector", "kv_role": "kv_both"}')
    with pytest.raises(KvplanError, match=r"secondary tier 'obj': .* fs is planned"):
        plan(kv_transfer_config=told_as_json(secondary_tiers=[{"type": "obj"}]))
    with pytest.raises(KvplanError, match="OffloadingConnector has kv_both"):
        plan(kv_transfer_config='{"kv_connector": "OffloadingConnector", "kv_role": "kv_producer"}')
    with pytest.raises(KvplanError, match="must be a JSON object"):
        plan(kv_transfer_config="here")
    pasted = read_command(['vllm serve m --kv-transfer-config \'{"kv_connector": "NixlConnector"}\''])
    assert pasted.not_planned == ("--kv-transfer-config (connector NixlConnector)",)


def test_files_are_read_by_one_thread_a_request() -> None:
    """Reading n chunks takes n times a file's latency and bytes; larger chunks pay the latency less often."""
    small, large = tiered(), tiered(blocks_per_chunk=16)
    [few], [many] = large.files, small.files
    drive = find_drive()
    assert many.file_bytes == 16 * 147456
    assert few.file_bytes == 16 * many.file_bytes
    for files, tier in ((few, large), (many, small)):
        read = 9216 // tier.chunk_tokens * (drive.latency_s + files.file_bytes / drive.read_bytes_per_s)
        assert files.reload_s == pytest.approx(tier.reload_s + read + 2e-3)
    assert few.reload_s < many.reload_s


def test_files_pay_later_than_host_memory() -> None:
    """A prefix must be as long or longer to be read from files than to be loaded from memory, longer over a network."""
    local, remote = tiered(), tiered(locality="REMOTE")
    [files], [far] = local.files, remote.files
    ways = [
        [n if n is not None else inf for n in way]
        for way in (local.break_even, files.break_even, far.break_even)
    ]
    assert all(shorter <= longer for pair in pairwise(ways) for shorter, longer in zip(*pair, strict=True))
    assert ways[0] != ways[1] != ways[2]
    assert local.reload_s < files.reload_s < far.reload_s
    never = replace(far, break_even=Lengths(None, None))
    assert "They buy nothing" in never.lines(9216, local.recompute_s)[0]
    assert local.to_dict()["file_tiers"][0]["source"] == str(find_drive())  # type: ignore[index]


def test_links_follow_the_card() -> None:
    """PCIe by the data sheet, C2C where the CPU sits beside the card; a stated rate has no range."""
    names = {card: find_host_link(get_gpu(card)).name for card in ("t4", "a100", "h100", "gh200-96gb")}
    assert names == {"t4": "pcie3", "a100": "pcie4", "h100": "pcie5", "gh200-96gb": "c2c"}
    stated = find_host_link(get_gpu("h100"), gb_s=40)
    assert (stated.low, stated.high, stated.source) == (40e9, 40e9, "stated")
    assert np.isclose(stated.seconds(4e9), 0.1, rtol=1e-3)


def test_circular_buffers_and_remade_windows_stay_on_the_gpu() -> None:
    """vLLM 0.32 offloads the groups that take part in prefix caching: GLM-5.3-Flash's chunks hold 640 tokens, not 4."""
    args = EngineArgs(tensor_parallel_size=8, max_model_len=65536, kv_offloading_size=100)
    glm = estimate("zai-org/GLM-5.3-Flash", "h200", args).layout
    assert glm is not None
    assert [g.block_size for g in glm.groups if g not in copied_groups(glm)] == [4]
    v41 = estimate("deepseek-ai/DeepSeek-V4.1-Flash", "h200", args).layout
    assert v41 is not None
    assert [(g.kind.value, g.block_size) for g in copied_groups(v41)] == [("mla", 64)]
