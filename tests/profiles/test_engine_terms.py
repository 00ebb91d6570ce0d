"""What an engine adds around its kernels: one row a version, laws of a step, and which profiles it is not added to."""

from __future__ import annotations

import pytest

from kvplan.engines.flags import EngineArgs, parse_engine
from kvplan.ground.gpu import get_gpu
from kvplan.ground.units import TICKS_PER_S
from kvplan.models.load import load_model
from kvplan.profiles.engine_terms import EngineTerms, Ranged, all_terms, find_terms, model_class
from kvplan.profiles.profile import load_profile
from kvplan.profiles.step_times import StepTimes, make_step_times
from kvplan.timing.step import StepShape

US = TICKS_PER_S // 10**6
H100, B200 = get_gpu("h100"), get_gpu("b200")


def times(engine: str, model: str = "Qwen/Qwen3-8B", gpu: str = "h100", **flags: object) -> StepTimes:
    args = EngineArgs.model_validate({"max_num_seqs": 256} | flags)
    return make_step_times(load_model(model), get_gpu(gpu), args, engine=engine)


def decode(found: StepTimes, num: int, context: int = 1000) -> int:
    return found.time.ticks(StepShape(num, num, num * context))


def terms(engine: str) -> EngineTerms:
    found = find_terms(parse_engine(engine))
    assert found is not None
    return found


@pytest.mark.parametrize("minor", range(11, 60))
def test_every_version_of_vllm_from_0_11_on_has_one_row(minor: int) -> None:
    rows = [
        r for r in all_terms() if r.engine == "vllm" and r.since <= (0, minor) < (r.until or (1 << 30, 0))
    ]
    assert rows == [terms(f"vllm@0.{minor}")]


def test_ranges_hold_their_value_and_say_where_from() -> None:
    for row in all_terms():
        each = [value for value in vars(row).values() if isinstance(value, Ranged)]
        each += [*row.launch_ms.values(), *row.many_us.values()]
        assert all(t.low <= t.value <= t.high for t in each), row.versions
        assert len(row.source) > 20
    assert str(terms("vllm@0.11").layer_us) == "16.3 (10.6 to 19.9)"


def test_a_step_is_kernels_layers_and_sequences() -> None:
    """The difference between two versions of an engine on the same kernels is what their rows say."""
    old, new = terms("vllm@0.11"), terms("vllm@0.32")
    layers = len(load_model("Qwen/Qwen3-8B").layers)
    for num in (1, 8, 200):
        said = layers * (old.layer_us.value - new.layer_us.value)
        said += num * (old.sequence_us.value + old.sampled_us.value - new.sequence_us.value)
        apart = decode(times("vllm@0.11"), num) - decode(times("vllm@0.32"), num)
        assert apart == pytest.approx(said * US, abs=4)


def test_sampling_parameters_of_the_checkpoint_cost_time() -> None:
    """Not where the flag leaves them out, nor where the checkpoint states neither top_k nor top_p."""
    plain = decode(times("vllm@0.11", generation_config="vllm"), 64)
    apart = decode(times("vllm@0.11"), 64) - plain
    assert apart == pytest.approx(64 * terms("vllm@0.11").sampled_us.value * US, abs=4)
    for flag in ("auto", "vllm"):
        found = times("vllm@0.11", "openai/gpt-oss-120b", generation_config=flag)
        assert decode(found, 64) == decode(times("vllm@0.11", "openai/gpt-oss-120b"), 64)


def test_an_override_comes_before_the_checkpoints_parameters() -> None:
    """vLLM's `--override-generation-config`: top-k or top-p where it states one, neither where it rules out both."""
    sampled, plain = (decode(times("vllm@0.11", generation_config=g), 64) for g in ("auto", "vllm"))
    for flags, found in (
        ({"generation_config": "vllm", "override_generation_config": '{"top_k": 20}'}, sampled),
        ({"generation_config": "vllm", "override_generation_config": '{"top_p": 0.9}'}, sampled),
        ({"generation_config": "vllm", "override_generation_config": '{"temperature": 0.6}'}, plain),
        ({"override_generation_config": '{"top_k": -1, "top_p": 1}'}, plain),
        ({"override_generation_config": '{"top_k": -1}'}, sampled),
    ):
        assert decode(times("vllm@0.11", **flags), 64) == found


def test_ranks_wait_for_each_other() -> None:
    row = terms("vllm@0.32").model_copy(update={"tensor_parallel_us": Ranged(0, 0, 0)})
    assert row.tensor_parallel_us.value == 0 < terms("vllm@0.32").tensor_parallel_us.value
    model, timing = load_model("Qwen/Qwen3-32B"), load_profile("h100-sxm-vllm").timing
    assert timing is not None
    one, two = (times("vllm@0.32", model.name, tensor_parallel_size=n).time.costs.layer_s for n in (1, 2))
    assert two - one == pytest.approx(15e-6)


def test_fp8_experts_and_experts_of_then() -> None:
    """vLLM 0.11's fp8 mixtures were slower than any table on both cards; its bf16 mixtures on Blackwell alone."""
    fp8 = times("vllm@0.11", "Qwen/Qwen3-235B-A22B-Thinking-2507-FP8", tensor_parallel_size=8)
    bf16 = times("vllm@0.11", "Qwen/Qwen3-235B-A22B-Instruct-2507", tensor_parallel_size=8)
    assert fp8.time.costs.layer_s - bf16.time.costs.layer_s == pytest.approx(90e-6)
    for gpu, slower in (("h100", 1.0), ("b200", 1.93)):
        scale = [
            getattr(times(e, "Qwen/Qwen3-30B-A3B-Thinking-2507", gpu).time.costs.experts, "scale", 1.0)
            for e in ("vllm@0.11", "vllm@0.32")
        ]
        assert scale[0] / scale[1] == pytest.approx(slower)


@pytest.mark.parametrize(("seqs", "largest"), [(8, 16), (100, 200), (256, 512), (4096, 512)])
def test_graphs_are_captured_up_to_twice_max_num_seqs(seqs: int, largest: int) -> None:
    """`max_cudagraph_capture_size`; beyond it a step waits for its launches."""
    found = times("vllm@0.11", max_num_seqs=seqs).time
    assert found.costs.capture_sizes[-1] == largest
    small, big = (found.ticks(StepShape(n, 1, 100, n - 1, 1, 10.0)) for n in (largest, largest + 1))
    assert big > small
    assert times("vllm@0.11", enforce_eager=True).time.costs.capture_sizes == ()
    assert times("vllm@0.10", max_num_seqs=seqs).time.costs.capture_sizes[-1] == 512


def test_many_sequences_are_prepared_one_by_one() -> None:
    """Beyond the CUDA graphs the CPU's time for each sequence shows where the GPU is quicker."""
    old, new = (
        times(e, "openai/gpt-oss-120b", "b200", max_num_seqs=4096) for e in ("vllm@0.11", "vllm@0.32")
    )
    assert decode(old, 4000, 10) == 4000 * 46.5 * US > decode(new, 4000, 10)
    assert decode(old, 512, 10) > decode(new, 512, 10)


def test_profiles_of_whole_steps_and_other_engines_are_left_alone() -> None:
    for name, gpu in (("rtx-4090-vllm", "rtx-4090"), ("a100-80gb-vllm-2023", "a100-80gb")):
        found = make_step_times(load_model("Qwen/Qwen3-8B"), get_gpu(gpu), profile=name)
        timing = load_profile(name).timing
        assert timing is not None
        assert found.time.costs.layer_s == timing.coefficients.get("step.layer_s", 0.0)
        assert not any("around the kernels" in note for note in found.notes)
    assert find_terms(parse_engine("sglang")) is None
    assert find_terms(parse_engine("vllm@0.8")) is None


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("Qwen/Qwen3-8B", "dense"),
        ("openai/gpt-oss-120b", "experts"),
        ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", "states"),
        ("deepseek-ai/DeepSeek-V3.1", "latent"),
    ],
)
def test_launches_follow_the_class_of_model(model: str, kind: str) -> None:
    assert model_class(load_model(model)) == kind
    found = times("vllm@0.11", model)
    assert found.time.costs.host.launch_s == pytest.approx(terms("vllm@0.11").launch_ms[kind].value / 1e3)  # type: ignore[index]
