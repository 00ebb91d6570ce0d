"""Measured surfaces: what is between their points, what is outside, and that leaping stays exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvplan.cli.main import run
from kvplan.engines.flags import EngineArgs
from kvplan.ground.gpu import get_gpu
from kvplan.ground.units import TICKS_PER_S
from kvplan.models.load import load_model
from kvplan.profiles.profile import load_profile
from kvplan.profiles.step_times import default_link, make_step_times
from kvplan.profiles.surface_file import STEP, packed, read_surfaces
from kvplan.scenario.schema import Deployment, Interconnect
from kvplan.simulation.deploy import stated_link
from kvplan.timing.costs import GemmCosts
from kvplan.timing.links import LINKS
from kvplan.timing.step import NO_KNOT, ModelStepTime, ScaledStepTime, StepShape
from kvplan.timing.surfaces import GemmSurface, Sheet, product_sheet_s
from kvplan.timing.work import Product, step_work

SHEET = Sheet(3e12, 9e14, 2.0)
TOKENS, OUTS, INS = np.array([1.0, 64.0, 4096.0]), np.array([512.0, 8192.0]), np.array([512.0, 8192.0])


def surface(share: float = 2.0) -> GemmSurface:
    """Every product takes `share` times what the data sheet allows."""
    return GemmSurface(SHEET, TOKENS, OUTS, INS, np.full((3, 2, 2), np.log(share)))


@pytest.mark.parametrize("size", [100.0, 1000.0, 8192.0, 200_000.0])
def test_outside_the_table_time_grows_with_the_work(size: float) -> None:
    """Between, below and beyond the measured widths a product keeps its share of the data sheet."""
    found = surface().column(size, 4096.0)
    assert found == pytest.approx(2.0 * product_sheet_s(SHEET, TOKENS, size, 4096.0))


def test_products_add_up() -> None:
    """A step's curve is the sum of its products at every measured token count, and proportional beyond the last."""
    curve = surface().curve([Product(2, 512, 512), Product(1, 8192, 512)])
    at = 2 * surface().column(512, 512) + surface().column(8192, 512)
    assert [curve(float(m)) for m in TOKENS] == pytest.approx(at.tolist())
    assert curve(8192.0) == pytest.approx(2 * curve(4096.0))


def test_a_file_holds_its_surfaces(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Written and read again: the same numbers to half a step."""
    path = tmp_path_factory.mktemp("surfaces") / "p.surfaces.xz"
    path.write_bytes(packed({"gemm.bf16": surface(1.37)}))
    found = read_surfaces(path)["gemm.bf16"]
    assert isinstance(found, GemmSurface)
    assert np.abs(found.ratio - surface(1.37).ratio).max() <= STEP / 2 + 1e-12
    assert found.sheet == SHEET


@pytest.mark.parametrize("model", ["Qwen/Qwen3-8B", "openai/gpt-oss-120b", "deepseek-ai/DeepSeek-V3"])
def test_lines_are_exact_between_knots(model: str) -> None:
    """A pure decode step is a + b * context up to the line's limit, in whole ticks, and never falls."""
    time = make_step_times(load_model(model), get_gpu("h200"), EngineArgs(tensor_parallel_size=8)).time
    for batch in (1, 7, 48, 200):
        context, before = batch, 0
        for _ in range(40):
            a, b, limit = time.decode_line(batch, context)
            assert b >= 0
            assert limit > context
            last = min(limit - 1, 1 << 40)
            for at in (context, last):
                assert time.ticks(StepShape(batch, batch, at)) == a + b * at
                assert a + b * at >= before
                before = a + b * at
            if limit == NO_KNOT:
                break
            context = limit
        assert limit == NO_KNOT


def test_the_user_s_link_comes_first() -> None:
    """A stated link replaces the profile machine's; RTX cards, found anywhere, do not take a server's table."""
    gpu, model, args = get_gpu("h100"), load_model("Qwen/Qwen3-32B"), EngineArgs(tensor_parallel_size=2)
    shape = StepShape(64, 64, 64 * 1024)
    asked = Deployment.model_validate(
        {"model": "Qwen/Qwen3-32B", "interconnect": {"kind": "pcie4", "gb_s": 8}}
    )
    link = stated_link(gpu, asked.interconnect)
    assert link is not None
    assert "8 GB/s" in str(link)
    slow = make_step_times(model, gpu, args, link=link).time.seconds(shape)
    assert slow > make_step_times(model, gpu, args).time.seconds(shape) + 128 * 64 * 5120 * 2 / 8e9
    assert default_link(get_gpu("rtx-pro-6000")).comes_first
    assert not default_link(gpu).comes_first


@pytest.mark.parametrize(
    ("said", "kind", "gb_s", "latency_us"),
    [
        ("pcie5", "pcie5", None, None), ("nvlink,gb_s=300", "nvlink", 300, None),
        ("pcie4,gb_s=12,latency_us=20", "pcie4", 12, 20), ("gb_s=25", None, 25, None),
    ],
)  # fmt: skip
def test_a_link_is_one_word_with_numbers(said: str, kind: str | None, gb_s: float, latency_us: float) -> None:
    found = Deployment.model_validate({"model": "Qwen/Qwen3-32B", "interconnect": said}).interconnect
    assert found == Interconnect(kind=kind, gb_s=gb_s, latency_us=latency_us)  # type: ignore[arg-type]


@pytest.mark.parametrize("said", ["pcie9", "pcie5,gb=3", "pcie5,gb_s", "pcie5,gb_s=fast", "", "pcie5,,"])
def test_no_link_is_guessed(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "chat", "--interconnect", said or ",", "--dump-scenario"]) == 2
    assert "interconnect" in capsys.readouterr().err


def test_a_ring_moves_every_byte_twice() -> None:
    """All-reduce among n: 2 (n - 1) hops of a share of 1/n; a gather half of that."""
    link = LINKS["pcie5"]
    hops = 2 * 7
    assert link.all_reduce(8)(8e6) == pytest.approx(hops * (link.latency_s + 1e6 / link.bytes_per_s))
    assert link.gather(8)(8e6) == pytest.approx(hops / 2 * (link.latency_s + 1e6 / link.bytes_per_s))


def test_data_parallel_ranks_pass_their_tokens() -> None:
    """Experts of a mixture over two data ranks: a step takes longer by what the gathers and sums take."""
    gpu, model = get_gpu("h100"), load_model("Qwen/Qwen3-30B-A3B")
    args = EngineArgs(data_parallel_size=2, enable_expert_parallel=True)
    fast, slow = (LINKS[k].stated(None, None) for k in ("nvlink", "pcie4"))
    shape = StepShape(64, 64, 64 * 1024)
    each = [make_step_times(model, gpu, args, link=link).time.seconds(shape) for link in (fast, slow)]
    moved = 2 * 64 * 2048 * 2
    apart = 48 * 2 * (slow.gather(2)(moved) - fast.gather(2)(moved))
    assert each[1] - each[0] == pytest.approx(apart, rel=1e-6)


@pytest.mark.parametrize("profile", ["h200-vllm", "rtx-4090-vllm"])
def test_experts_see_the_tokens_of_all_ranks(profile: str) -> None:
    """Two ranks of expert parallelism: ranks that all bring as many pool nothing more, and a rank beside an idle one
    saves the experts of the tokens that are not there. In CUDA graphs both are padded to the fullest."""
    timing = load_profile(profile)
    args = EngineArgs(data_parallel_size=2, enable_expert_parallel=True)
    gpu, model = get_gpu(timing.gpu), load_model("Qwen/Qwen3-30B-A3B")
    time = make_step_times(model, gpu, args, profile=timing).time
    assert isinstance(time, ModelStepTime)
    graphs = time.costs.largest_graph
    assert graphs == 512
    eager = 4 * graphs
    assert time.pool_ticks(eager, [eager, eager]) == 0
    assert time.pool_ticks(graphs, [graphs, 1]) == 0
    experts = [time.costs.experts.experts(e) for e in time.work.experts]
    saved = sum(curve(2 * eager) - curve(eager + 1) for curve in experts)
    assert saved > 0
    assert -time.pool_ticks(eager, [eager, 1]) == pytest.approx(saved * TICKS_PER_S, rel=1e-9)
    assert time.pool_ticks(1, [eager, 1]) > 0
    assert ScaledStepTime(time, 2.0).pool_ticks(1, [eager, 1]) == 2 * time.pool_ticks(1, [eager, 1])


def test_pooled_tokens_are_counted_once() -> None:
    """Fitted rates: experts of a rank that pools with another take what twice the tokens take without one."""
    costs = GemmCosts(3e12, 9e14)
    alone, pooled = (
        step_work(
            load_model("Qwen/Qwen3-30B-A3B"), data_parallel_size=n, enable_expert_parallel=True
        ).experts[0]
        for n in (1, 2)
    )
    few = replace(alone, num_experts=pooled.num_experts)  # the experts of one of two ranks
    assert costs.experts(pooled)(64.0) == costs.experts(few)(64.0)
    assert pooled.tokens_factor == 2.0


def test_a_profile_of_few_points_has_no_surfaces() -> None:
    """A user's calibrated card: coefficients alone, read by the same reader."""
    timing = load_profile("rtx-4090-vllm").timing
    assert timing is not None
    assert timing.surfaces == {}
    assert not timing.kernels
