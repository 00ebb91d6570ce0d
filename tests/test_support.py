"""docs/support.md is what the code says; `kvplan support` ends with the code it should."""

from __future__ import annotations

import json

import pytest
from reference import table
from validation import section

from kvplan.cli.main import run
from kvplan.engines import environment as variables
from kvplan.engines.command import ACTS, NOT_PLANNED
from kvplan.engines.some_values import IDLE_VALUES
from kvplan.engines.vllm_parser import vllm_flags
from kvplan.ground.files import catalog_dir
from kvplan.ground.gpu import get_gpu, gpu_names
from kvplan.memory.stated.rows import QWENS, STATED
from kvplan.memory.stated.ways import TowerRow
from kvplan.models.architectures import architectures, how_checked
from kvplan.models.load import bundled_models
from kvplan.models.names import TEXT_OF
from kvplan.models.quantization import METHODS
from kvplan.models.vision import has_tower

PAGE = "support.md"


def test_architectures() -> None:
    def tower(name: str) -> str:
        if has_tower(name):
            return "with its tower"
        return "not known: `--language-model-only`" if name in TEXT_OF else ""

    rows = [(f"`{name}`", how_checked(name), tower(name)) for name in architectures()]
    alone = sum(name in TEXT_OF and not has_tower(name) for name in architectures())
    counts = f"{len(rows)} names; {len(rows) - alone} whole, {alone} by their language model alone."
    head = table("architecture, checked by, tower", rows)
    section("architectures", f"## Architectures\n\n{counts}\n\n{head}", PAGE)


def test_formats_and_models() -> None:
    formats = ", ".join(f"`{name}`" for name in METHODS)
    text = (
        f"## Formats of weights\n\n{formats}; bfloat16, float16, float32. fp8, AWQ, ModelOpt's, MXFP8, "
        "compressed-tensors' MXFP4 and MXFP8, and Quark's are equal to vLLM 0.32's own classes, dense and with "
        "experts; GPTQ and bitsandbytes follow their specifications: vLLM 0.32 sizes them after loading. torchao's "
        "8-bit and HQQ's are equal to the classes of torchao 0.18 and hqq 0.2.8; torchao's tiled int4, which needs a "
        "GPU, lies within 2 % of published peaks. GGUF by name lies within 1.5 % of 12 published files (half within "
        "0.4 %). Other values of `quant_method` are refused by name, and under vLLM 0.32 the widths, groups and orders "
        "that it takes no more (GPTQ of 2 or 3 bits or with `desc_act`, AWQ of other than 4 bits, HQQ). A GGUF file's "
        "bits are its header's; "
        f"`Model-GGUF:Q4_K_M` takes llama.cpp's of that name.\n\n## Models\n\n{len(bundled_models())} are bundled "
        "(`kvplan models`); any `config.json` of an architecture above is read."
    )
    section("formats", text, PAGE)


def test_cards() -> None:
    rows = [
        (f"`{gpu.name}`", gpu.product, f"{gpu.usable_gib:g}", f"{gpu.bandwidth_gb_s:g}", gpu.source)
        for gpu in map(get_gpu, gpu_names())
    ]
    text = table("card, product, usable GiB, GB/s, source", rows)
    section("cards", f"## Cards\n\n{len(rows)} by name; `--gpu` also takes a stated card.\n\n{text}", PAGE)


def test_engines() -> None:
    rows = []
    for row in json.loads((catalog_dir() / "overheads.json").read_text())["overheads"]:
        figures = [row.get("runtime_gib"), *row.get("runtime_gib_of", {}).values()]
        told = "; ".join(figure["source"] for figure in figures if figure)
        name = row["engine"] + (" (V0)" if row["legacy"] else "")
        rows.append(
            (name, ".".join(map(str, row["since"])), told or "as the row above, but " + _changes(row))
        )
    text = (
        f"## Engine versions\n\n{table('engine, since, runtime growth learnt from', rows)}\n\nPasted commands: all"
        " flags of vLLM 0.32's parser (below), of SGLang 0.5.23's and of trtllm-serve's."
    )
    section("engines", text, PAGE)


def test_flags() -> None:
    """What of a pasted command acts, and what changes the plan and is not planned."""
    acting = len(vllm_flags().keys() & ACTS)
    rows = [(f"`--{flag}`", about) for flag, about in sorted(NOT_PLANNED.items())]
    rows += [
        (f"`--{flag}` but {' or '.join(idle)}", about) for flag, (idle, about) in sorted(IDLE_VALUES.items())
    ]
    rows += [(f"`{name}`", about) for name, about in sorted(variables.NOT_PLANNED.items())]
    text = (
        f"## Flags and variables\n\nOf the {len(vllm_flags())} flags of vLLM 0.32's parser {acting} act on the plan, as"
        f" do these variables of its environment: {', '.join(f'`{name}`' for name in variables.ACTS)}. What changes"
        " memory, scheduling or time and is not planned is named where a pasted command has it; all else does nothing"
        f" to the plan.\n\n{table('not planned, what it is about', rows)}"
    )
    section("flags", text, PAGE)


def test_stated_sizes() -> None:
    """Which towers take which sizes of --mm-processor-kwargs and --limit-mm-per-prompt."""

    def words(row: TowerRow) -> tuple[str, str]:
        acts = {"image": row.picture_acts, "video": row.video_acts, "audio": row.audio_acts}
        sizes = [f"`{kind}.{key}`" for kind, keys in acts.items() for key in keys]
        keys = ", ".join(f"`{key}`" for key in row.keys) or "none"
        scopes = {"idle": "; outside of scopes alone", "refused": "; scopes end the start"}
        keys += "; others end the start" if row.strict else scopes.get(row.scoped, "")
        return keys, ", ".join(sizes) or "none"

    of: dict[tuple[str, str], list[str]] = {words(QWENS): ["Qwen's towers and their kin", "GLM's"]}
    for name, row in STATED.items():
        of.setdefault(words(row), []).append(f"`{name}`")
    rows = [(", ".join(names), keys, sizes) for (keys, sizes), names in of.items()]
    head = table(
        "tower, keys of `--mm-processor-kwargs` that act, sizes of `--limit-mm-per-prompt` that act", rows
    )
    text = (
        "What flags state of an item changes the item that start-up runs and the tokens by which it is counted, as vLLM"
        " 0.32 answers (`tests/fixtures/stated_items_vllm_0.32.json`); what does not act is named beside the activation"
        f" peak, and towers that are not here plan no stated sizes and say so.\n\n{head}"
    )
    section("sizes", f"## Sizes of items\n\n{text}", PAGE)


def _changes(row: dict[str, object]) -> str:
    """What a row of the overheads says anew."""
    return ", ".join(f"`{name}`" for name in sorted(row.keys() - {"engine", "since", "legacy"}))


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (0, "Qwen/Qwen3-8B h200 vllm@0.32", "equal vLLM 0.32's own class"),
        (0, "deepseek-ai/DeepSeek-V4-Flash 8xh200 vllm", "planned: DeepseekV4ForCausalLM"),
        (1, "no/such-model h200 vllm", "refused: "),
        (1, "Qwen/Qwen3-8B h200 vllm@9.9", "not known: vllm@9.9; the newest known is vllm@0.33"),
        (1, "Qwen/Qwen3-8B h200 sglang@1.0", "the newest known is sglang@0.5"),
    ],
)
def test_support_says_it_in_one_line(
    code: int, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["support", *words.split()]) == code
    printed = capsys.readouterr().out
    assert said in printed
    assert printed.count("\n") == 1
