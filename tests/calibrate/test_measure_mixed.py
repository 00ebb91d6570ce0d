"""Mixed steps' kernels: each is attention, one that is not there or wrong is passed over, and rows say which it was."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from places import ROOT

torch = pytest.importorskip("torch", reason="measuring a card needs torch")

from kvplan.calibrate.fit.mixing import APART, timed_apart  # noqa: E402
from kvplan.calibrate.measure import attention, kernels  # noqa: E402
from kvplan.calibrate.measure.grids import CPU, AttentionShape  # noqa: E402
from kvplan.calibrate.measure.kernels import decoding, make_batch, reference, relative_error  # noqa: E402

DEVICE = torch.device("cpu")
SHAPE = AttentionShape(num_heads=8, num_kv_heads=2, head_dim=32)


def ragged(parts=kernels.SMALL_CASE, shape=SHAPE):
    return kernels.make_batch(shape, parts, 16, "float32", DEVICE)


def test_the_reference_of_lone_decodes_is_decode_attention() -> None:
    """One new token each: ragged attention is what decode attention gives for the same pool and queries."""
    case = ragged([(4, 1), (63, 1), (299, 1)])
    expected = reference(case)
    assert relative_error(kernels.reference(case), expected) < 1e-6


def test_the_reference_is_causal() -> None:
    """A prompt's tokens attend as one prompt and as single tokens behind a growing past: the same numbers."""
    whole = ragged([(0, 20)])
    together = kernels.reference(whole)
    for i in (0, 7, 19):
        one = torch.tensor([0, 1], dtype=torch.int32)
        length = torch.tensor([i + 1], dtype=torch.int32)
        alone = whole._replace(q=whole.q[i : i + 1], lengths=length, starts=one)
        assert relative_error(together[i : i + 1], reference(alone)) < 1e-6


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("shape", [SHAPE, AttentionShape(4, 4, 64)])
def test_flex_attention_takes_decodes_and_prompts_together(shape) -> None:
    """FlexAttention over its own pages equals float32 attention for decodes, prompts and chunks over a past."""
    case = ragged(shape=shape)
    out = kernels.flex_kernel(case, compiled=False)()
    assert relative_error(out, kernels.reference(case)) < 1e-5


def test_our_kernels_are_attention() -> None:
    """The Triton kernels, interpreted, equal float32 attention: ragged, decode, latent, odd groups."""
    pytest.importorskip("triton", reason="our kernels need triton")
    check = """
import torch
from kvplan.calibrate.measure import kernels as m
from kvplan.calibrate.measure.grids import AttentionShape
for shape in (AttentionShape(8, 2, 32), AttentionShape(4, 4, 64), AttentionShape(6, 2, 32)):
    case = m.make_batch(shape, m.SMALL_CASE, 16, "float32", torch.device("cpu"))
    error = m.relative_error(m.MIXED_KERNELS["triton"][0](case)(), m.reference(case))
    assert error < 1e-5, (shape, error)
    case = m.make_batch(shape, m.decoding([5, 64, 300]), 16, "float32", torch.device("cpu"))
    error = m.relative_error(m.DECODE_KERNELS["triton"][0](case)(), m.reference(case))
    assert error < 1e-5, (shape, error)
case = m.make_mla_batch((16, 64, 16), [5, 130], 64, torch.device("cpu"))
case = case._replace(q=case.q.float(), pool=case.pool.float())
latent = case._replace(pool=torch.cat([case.pool, case.pool], 1))
error = m.relative_error(m.mla_decode(case, 16)(), m.reference(latent)[..., :64])
assert error < 1e-5, error
"""
    root = ROOT
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", check], check=True, env=environment)


def test_a_wrong_or_strange_kernel_is_not_timed() -> None:
    """A kernel that gives other numbers, none at all, or has another interface is passed over."""

    def zeros(case):
        return lambda: torch.zeros_like(case.q)

    def unwritten(case):
        return lambda: torch.full_like(case.q, float("nan"))

    def strange(case):
        raise TypeError("unexpected keyword argument 'block_table'")

    def right(case):
        return lambda: kernels.reference(case)

    assert [kernels.is_right(k, ragged()) for k in (zeros, unwritten, strange, right)] == [
        False, False, False, True,
    ]  # fmt: skip


def test_rows_say_whether_one_kernel_served_both() -> None:
    """On a CPU two kernels run in turn and the rows are held out; one kernel is named and its rows are fitted."""
    grid = replace(CPU, mixed_chunks=(16,), mixed_batches=(4,), mixed_contexts=(64,))
    [two] = attention.mixed_probes(grid, DEVICE, kernels.choose_kernels(DEVICE, grid.kv_dtypes))
    assert (two.point["kernel"], two.point["one_kernel"], two.point["held_out"]) == (
        "sdpa+sdpa",
        False,
        True,
    )
    two.prepare()[0]()
    seen = []

    def kernel(case):
        seen.append(case)
        return lambda: kernels.reference(case)

    mine = {"bfloat16": kernels.Named("mine", kernel)}
    one, alone = attention.mixed_probes(grid, DEVICE, kernels.Kernels(mine, mine))
    assert (alone.op, alone.point["held_out"]) == ("prefill_attention", True)
    assert alone.prepare()[0]().shape == (16, 8, 32)
    seen.clear()
    assert (one.point["kernel"], one.point["one_kernel"], one.point["held_out"]) == ("mine", True, False)
    one.prepare()[0]()
    assert seen[0].new() == [1, 1, 1, 1, 16]
    assert seen[0].lengths.tolist() == [64, 64, 64, 64, 16]
    assert sum(seen[0].lengths.tolist()[:-1]) == one.point["decode_context"]


def test_mixing_is_assumed_only_where_no_one_kernel_was_timed() -> None:
    """A family whose mixed rows came from one kernel is fitted; any other is told that its kernels ran in turn."""

    def stated(one_kernel: bool, engine: str = "torch"):
        mixed = {"op": "mixed_attention", "one_kernel": one_kernel}
        families = {
            "gqa.bf16": [mixed],
            "gqa.fp8": [{"op": "decode_attention"}],
            "mla.bf16": [{}],
            "gemm.bf16": [{}],
        }
        return timed_apart({"engine": engine}, families)

    assert stated(False) == APART
    assert stated(True, "vllm") == {}
    names = set(stated(True))
    assert {name.rpartition(".")[0] for name in names} == {"gqa.fp8", "mla.bf16"}
    assert {name for name in names if name.startswith("mla")} == {"mla.bf16.serial_bytes_per_s"}


def test_pages_hold_past_and_new_tokens() -> None:
    """The pool of a ragged batch is that of a decode batch with the same lengths."""
    case = ragged([(30, 5), (0, 3)])
    same = make_batch(SHAPE, decoding([35, 3]), 16, "float32", DEVICE)
    assert torch.equal(case.pool, same.pool)
    assert torch.equal(case.table, same.table)
    assert case.q.shape == (8, 8, 32)
