"""Whisper: a decoder that remembers its tokens and, apart, what its encoder made of the sound.

Figures of vLLM 0.32.0: its class on the meta device, its planner over 20 GiB of KV. Cut models of other sizes are held
to it in `tests/models/test_architectures.py`.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from kvplan import estimate
from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import GiB, cdiv
from kvplan.memory.layout import kv_layout
from kvplan.models.architectures import from_config
from kvplan.models.load import load_model
from kvplan.models.weights import heaviest_rank, parameters
from kvplan.scenario.schema import Deployment
from kvplan.simulation.deploy import set_up

LARGE, TURBO = "openai/whisper-large-v3", "openai/whisper-large-v3-turbo"
ENCODED = 1500
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("name", "published", "layers"), [(LARGE, 1543490560, 64), (TURBO, 808878080, 36)])
def test_totals_are_the_published_ones(name: str, published: int, layers: int) -> None:
    """But for the zeros that vLLM adds: a bias of the keys in every encoder layer and twice in every decoder's."""
    decoders = layers - 32
    assert parameters(load_model(name)) - published == 1280 * (32 + 2 * decoders)


@pytest.mark.parametrize(
    ("tp", "weights", "plan"),
    [
        (1, 3087226880, (2621440, 8192, 6796)),
        (2, 1618524160, (1310720, 16384, 13592)),
        (4, 884172800, (655360, 32768, 27185)),
    ],
)
@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
def test_large_v3_is_planned_as_vllm_plans_it(
    tp: int, weights: int, plan: tuple[int, ...], capability: tuple[int, int]
) -> None:
    """On Blackwell its own attention runs by FlashInfer, that to the encoder by FlashAttention; blocks are the same."""
    model = load_model(LARGE)
    args = EngineArgs(tensor_parallel_size=tp, max_num_batched_tokens=8192, max_num_seqs=256)
    layout = kv_layout(model, args, 20 * GiB, capability=capability)
    assert heaviest_rank(model, tensor_parallel_size=tp).total == weights
    assert (layout.bytes_per_block, layout.num_blocks, layout.kv_cache_size_tokens) == plan
    both = ("FLASHINFER", "FLASH_ATTN") if capability[0] == 10 else ("FLASH_ATTN",)
    assert layout.attention_backends == both


def test_a_request_holds_its_tokens_and_one_item() -> None:
    """Start-up reserves a whole step's budget for the encoder's output; a request takes the blocks of 1,500."""
    plan = estimate(LARGE, "h100", input_len=4, output_len=200)
    groups = plan.shape.groups
    assert plan.shape.blocks_per_request == cdiv(448, 16) + cdiv(plan.args.max_num_batched_tokens, 16)
    assert [int(g.resident_blocks(204)) for g in groups] == [cdiv(204, 16), cdiv(ENCODED, 16)]
    assert plan.traces.value == (plan.shape.num_blocks - 1) // (cdiv(204, 16) + cdiv(ENCODED, 16))


def test_steps_are_neither_cut_nor_remembered() -> None:
    """Whatever is asked (vLLM `config/scheduler.py`), and graphs are those of pure decode steps."""
    plan = estimate(TURBO, "h100", enable_chunked_prefill=True, enable_prefix_caching=True)
    assert not plan.args.enable_chunked_prefill
    assert not plan.args.enable_prefix_caching
    plain = estimate("Qwen/Qwen3-0.6B", "h100")
    assert int(plan.budget.graphs.why.split()[0]) < int(plain.budget.graphs.why.split()[0])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"max_num_batched_tokens": 1024}, "encoder makes 1,500 of an item, in one step; raise it"),
        ({"engine": "sglang"}, "attention to an encoder, planned as vLLM lays that out"),
        ({"engine": "vllm@0.20"}, "how 0.20 does is not known"),
        ({"tensor_parallel_size": 8}, "20 attention heads; try 1, 2, 4, 5, 10, 20"),
        ({"disable_hybrid_kv_cache_manager": True}, "needs the hybrid KV cache manager"),
        ({"pipeline_parallel_size": 2}, "WhisperForConditionalGeneration has no pipeline stages"),
        ({"kv_offloading_size": 10}, "keeps the KV of encoder-decoder models on the GPU alone"),
    ],
)
def test_what_is_refused(flags: dict[str, object], said: str) -> None:
    with pytest.raises(KvplanError, match=said) as caught:
        estimate(LARGE, "h100", **flags)
    assert "\n" not in str(caught.value)


def test_it_is_not_simulated() -> None:
    with pytest.raises(
        KvplanError, match="its encoder's steps are not timed, so it is planned, not simulated"
    ):
        set_up(Deployment(model=TURBO, gpu="h100"))


def test_nemotron_parse_runs_on_one_gpu_and_keeps_its_page() -> None:
    """Its decoder attends to a page's 128 times 26 tokens and one of the whole; ranks norm parts as if whole."""
    packed = (ROOT / "tests" / "fixtures" / "architectures_vllm_0.32.json.xz").read_bytes()
    name = "NemotronParseForConditionalGeneration"
    model = from_config(json.loads(lzma.decompress(packed))[name]["config"], name)
    assert model.encoded_tokens == 128 * 26 + 1
    assert estimate(model, "h100")
    with pytest.raises(KvplanError, match="it runs on one GPU"):
        estimate(model, "h100", tensor_parallel_size=2)
