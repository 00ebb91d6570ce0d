"""The GPU table: every row sound, every spelling found, every miss helped."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu, gpu_names, match_product, split_count
from kvplan.ground.machines import AZURE, EC2, GOOGLE
from kvplan.ground.units import GiB
from kvplan.memory.forward import estimate

WANTED = [
    "t4",
    "v100-16gb",
    "v100-32gb",
    "a10",
    "a10g",
    "a30",
    "a40",
    "l4",
    "l40",
    "l40s",
    "a100-40gb",
    "a100-80gb",
    "a100-80gb-pcie",
    "h100-sxm",
    "h100-pcie",
    "h100-nvl",
    "h200",
    "gh200-96gb",
    "h20",
    "b200",
    "b300",
    "gb200",
    "gb300",
    "rtx-3090",
    "rtx-4090",
    "rtx-5090",
    "rtx-6000-ada",
    "rtx-pro-6000",
]


def test_table_covers_t4_to_gb300() -> None:
    """The cards people rent and own are there."""
    assert set(WANTED) <= set(gpu_names())
    assert len(gpu_names()) >= 90
    for family in ("rtx-30", "rtx-40", "rtx-50", "rtx-a", "rtx-pro-", "a800", "h800", "h20", "mi", "jetson-"):
        assert any(name.startswith(family) for name in gpu_names()), family
    slices = [name for name in gpu_names() if "-mig-" in name]
    assert len(slices) >= 10
    assert [get_gpu(name.replace("-mig-", "-")).name for name in slices] == slices


@pytest.mark.parametrize("name", gpu_names())
def test_row_is_sound(name: str) -> None:
    """CUDA shows less than the box says, fp8 never runs slower than bf16, each row names its source."""
    gpu = get_gpu(name)
    binary = gpu.nominal_gb < 100 or gpu.vendor == "amd"  # whose boxes say GB and mean GiB
    most, least = (1.0 if binary else 0.995), (0.7 if gpu.unified_memory else 0.85)
    assert least * gpu.nominal_gb < gpu.usable_gib <= gpu.nominal_gb * most
    assert gpu.flops("fp8") >= gpu.flops("bf16") >= gpu.flops("fp32")
    assert gpu.interconnect_gb_s >= gpu.pcie_gb_s or "unified" in gpu.product or gpu.interconnect == "PCIe"
    assert gpu.source
    assert gpu.compute_capability >= 7.0


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("h100", "h100-sxm"),
        ("H100-80GB", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("a100", "a100-80gb"),
        ("RTX 4090", "rtx-4090"),
        ("GeForce RTX 4090", "rtx-4090"),
        ("gb200", "gb200"),
        ("RTX A5000 24GB", "rtx-a5000"),
        ("RTX 3090 24GB", "rtx-3090"),
        ("A100 80GB", "a100-80gb"),
        ("A100 40GB", "a100-40gb"),
        ("AMD Instinct MI300X", "mi300x"),
        ("MI300X 192GB", "mi300x"),
        ("Jetson AGX Orin 64GB", "jetson-agx-orin-64gb"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert get_gpu(spelling).name == name


def test_aliases_are_unambiguous() -> None:
    """No two rows answer to one spelling."""
    for name in gpu_names():
        for spelling in (name, *get_gpu(name).aliases):
            assert get_gpu(spelling).name == name


def test_unknown_card_offers_the_closest() -> None:
    with pytest.raises(KvplanError, match="did you mean h100"):
        get_gpu("h10o")


@pytest.mark.parametrize(
    ("product", "gib", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40gb"),
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA L4", 22.0, "l4"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA GeForce RTX 5090", 31.4, "rtx-5090"),
    ],
)
def test_product_names_as_drivers_print_them(product: str, gib: float, name: str) -> None:
    assert match_product(product, int(gib * GiB)).name == name


def test_a_size_that_is_not_the_cards_is_refused() -> None:
    with pytest.raises(KvplanError, match="unknown GPU"):
        get_gpu("L4 48GB")


def test_local_reads_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--gpu local` takes memory from NVML and rates from the table."""
    memory = SimpleNamespace(total=150 * GiB, reserved=10 * GiB)
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetName=lambda h: "NVIDIA H200",
        nvmlDeviceGetMemoryInfo=lambda h, version: memory,
        nvmlMemory_v2=2,
        NVMLError=RuntimeError,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    gpu = get_gpu("local")
    assert gpu.total_bytes == 140 * GiB
    assert gpu.bandwidth == get_gpu("h200").bandwidth


def test_local_takes_the_table_where_nvml_reports_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unified memory: NVML answers "not supported" for GB10's memory; the table's total stands."""

    def refuse(handle: int, version: int) -> None:
        raise RuntimeError("Not Supported")

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetName=lambda h: "NVIDIA GB10",
        nvmlDeviceGetMemoryInfo=refuse,
        nvmlMemory_v2=2,
        NVMLError=RuntimeError,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert get_gpu("local").total_bytes == get_gpu("gb10").total_bytes


@pytest.mark.parametrize("name", ["mi300x", "mi325x", "mi355x", "strix-halo", "gb10", "jetson-thor"])
def test_cards_that_differ_say_how(name: str) -> None:
    """AMD and unified-memory cards plan, and their total's source says what is other about them."""
    gpu = get_gpu(name)
    assert gpu.differs
    assert not gpu.nvml_memory
    budget = estimate("Qwen/Qwen3-8B", name).budget
    assert gpu.differs in budget.total.source
    assert sum(row.size.value for row in budget.rows) == budget.total.size.value


def test_local_without_nvml_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(KvplanError, match="nvidia-ml-py"):
        get_gpu("local")


@pytest.mark.parametrize("name", gpu_names())
def test_usable_memory_has_a_source_or_is_marked_assumed(name: str) -> None:
    """Seen in logs, as a card of the same memory, or said to be assumed or estimated."""
    source = get_gpu(name).source
    assert any(
        word in source
        for word in ("from public logs", "total as", "assumed", "estimated", " B", "total", "memory")
    )


def test_a_stated_card() -> None:
    """Numbers as the user gives them; the rest says that it is assumed."""
    gpu = get_gpu("gib=20,gbps=672,tflops=44,name=mine,price=0.5")
    assert (gpu.name, gpu.total_bytes, gpu.bandwidth, gpu.flops(), gpu.price_per_hour) == (
        "mine", 20 * GiB, 672e9, 44e12, 0.5,
    )  # fmt: skip
    assert gpu.source == "stated by the user"
    assert gpu.interconnect.startswith("assumed")
    assert gpu.price_source == "stated"
    free = get_gpu("gib=20,gbps=672,tflops=44")
    assert free.price_per_hour == 0
    assert free.price_source.startswith("none stated")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gib=20", "gbps, tflops missing"),
        ("gib=20,gbps=x,tflops=1", "gbps must be a number above 0"),
        ("gib=20,colour=red", "are known"),
        ("gib=-1,gbps=1,tflops=1", "gib must be a number above 0"),
        ("gib=20,gib=80,gbps=1,tflops=1", "gib is there twice"),
        ("nowhere.yaml", "cannot be read"),
    ],
)
def test_a_stated_card_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(KvplanError, match=message):
        get_gpu(text)


def test_a_card_file(tmp_path: Path) -> None:
    """The short words, or a whole row."""
    short, whole = tmp_path / "short.yaml", tmp_path / "whole.yaml"
    short.write_text("gib: 20\ngbps: 672\ntflops: 44\n")
    whole.write_text(yaml.safe_dump(get_gpu("l4").model_dump(mode="json")))
    assert get_gpu(str(short)).total_bytes == 20 * GiB
    assert get_gpu(str(whole)) == get_gpu("l4")
    short.write_text("gib: [1]")
    with pytest.raises(KvplanError):
        get_gpu(str(short))


def test_counts_of_cards() -> None:
    assert split_count("8xH20-141GB") == (8, "H20-141GB")
    assert get_gpu(split_count("8xH20-141GB")[1]).name == "h20-141gb"
    assert split_count("0xh100") == (1, "0xh100")
    for written in ("H100:4", "h100 x4", "h100*4", "H100 : 4", "4 x h100"):
        count, name = split_count(written)
        assert (count, get_gpu(name).name) == (4, "h100-sxm")
    for alone in (
        "mi300x",
        "rtx-4060-ti-16gb",
        "gib=20,gbps=672,tflops=44",
        "cards/mine.yaml",
        "h100:0",
        "x4",
    ):
        assert split_count(alone) == (1, alone)


def test_machines_of_clouds_are_so_many_known_cards() -> None:
    """Every machine's card is in the table; sizes that do not exist are unknown, with a way to state a card."""
    cards = {card for card, _ in EC2.values()} | set(GOOGLE.values()) | {card for _, card in AZURE.values()}
    assert cards <= set(gpu_names())
    for written, meant in [
        ("g5.12xlarge", (4, "a10g")),
        ("G6e.xlarge", (1, "l40s")),
        ("p6-b200.48xlarge", (8, "b200")),
        ("a2-ultragpu-2g", (2, "a100-80gb")),
        ("g2-standard-48", (4, "l4")),
        ("g4-standard-192", (4, "rtx-pro-6000")),
        ("a3-highgpu-8g-nolssd", (8, "h100-sxm")),
        ("p6e-gb200.36xlarge", (4, "gb200")),
        ("Standard_ND96amsr_A100_v4", (8, "a100-80gb")),
    ]:
        assert split_count(written) == meant
    for unknown in ("p5.5xlarge", "a3-lowgpu-8g", "a3-highgpu-3g", "g4-standard-100", "Standard_D4s_v3"):
        assert split_count(unknown) == (1, unknown)
        with pytest.raises(KvplanError, match="stated as gib=20"):
            get_gpu(unknown)
