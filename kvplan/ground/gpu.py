"""The GPU table: what CUDA calls a card's total memory, its rates and its price. Facts only, a source per row.

Rows live in `catalog/gpus.json`, prices in `catalog/gpu_prices.json`. Knows nothing of engines or models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from kvplan.ground.config import Config, complaint
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import catalog_dir
from kvplan.ground.units import GiB


class GpuSpec(Config):
    """One GPU: usable memory, memory bandwidth, dense FLOP/s by dtype, links, price."""

    name: str
    """Short name, as `--gpu` takes it."""
    product: str = ""
    """The vendor's name."""
    aliases: tuple[str, ...] = ()
    """Other spellings `--gpu` takes."""
    vendor: Literal["nvidia", "amd"] = "nvidia"
    """Who makes it; AMD cards run the engines' ROCm builds."""
    architecture: str = ""
    """volta, turing, ampere, ada, hopper, blackwell, cdna3, cdna4, rdna3.5."""
    compute_capability: float = Field(ge=0)
    """CUDA compute capability, e.g. 9.0; on AMD the first two digits of the gfx number, as torch reports them."""
    nominal_gb: float = Field(gt=0)
    """The size on the box."""
    usable_gib: float = Field(gt=0)
    """What CUDA reports as total, GiB; engines take their share of this."""
    usable_gib_range: tuple[float, float]
    """Lowest and highest total seen across drivers and ECC settings, GiB."""
    smi_mib: float = Field(0, ge=0)
    """Total that nvidia-smi or rocm-smi prints, MiB, from which SGLang derives defaults; 0: the range's high end."""
    unified_memory: bool = False
    """Memory is the host's too: what the system and its page cache hold is not free for the engine."""
    nvml_memory: bool = True
    """Whether NVML reports the card's memory (not on AMD, Jetson and GB10)."""
    bandwidth_gb_s: float = Field(gt=0)
    """Peak memory bandwidth, 10^9 bytes a second."""
    dense_tflops: dict[str, float]
    """Peak dense tensor rate by dtype, 10^12 a second (no sparsity, 32-bit accumulation)."""
    interconnect: str = ""
    """What joins the cards of a node."""
    interconnect_gb_s: float = Field(gt=0)
    """Bytes a GPU sends over it, one direction, 10^9 a second."""
    pcie_gb_s: float = Field(gt=0)
    """Bytes a GPU sends to the host, one direction, 10^9 a second."""
    price_per_hour: float = Field(0.0, ge=0)
    """US dollars an hour on demand; meant to be overridden."""
    price_source: str = "stated"
    """Who asks that price, and when."""
    source: str
    """Where the row comes from."""

    @model_validator(mode="after")
    def _range_holds_the_value(self) -> Self:
        low, high = self.usable_gib_range
        if not low <= self.usable_gib <= high:
            raise ValueError(f"{self.name}: usable_gib {self.usable_gib} lies outside {low}..{high}")
        return self

    @property
    def total_bytes(self) -> int:
        """Usable memory in bytes, as CUDA's total."""
        return int(self.usable_gib * GiB)

    @property
    def total_bytes_range(self) -> tuple[int, int]:
        """Lowest and highest total seen, bytes."""
        low, high = self.usable_gib_range
        return int(low * GiB), int(high * GiB)

    @property
    def reported_mib(self) -> float:
        """Total memory as the vendor's tool prints it, MiB."""
        return self.smi_mib or self.usable_gib_range[1] * 1024

    @property
    def differs(self) -> str:
        """What is other about this card than about one with memory of its own; empty for most."""
        facts = []
        if self.unified_memory:
            facts.append("memory shared with the host: what the system holds is not free")
        if self.vendor == "amd":
            facts.append("ROCm build: other attention kernels, overheads not measured")
        return "; ".join(facts)

    @property
    def bandwidth(self) -> float:
        """Peak memory bandwidth, bytes a second."""
        return self.bandwidth_gb_s * 1e9

    @property
    def interconnect_bandwidth(self) -> float:
        """Bytes a second one GPU sends to its peers, one direction."""
        return self.interconnect_gb_s * 1e9

    def flops(self, dtype: str = "bf16") -> float:
        """Peak dense FLOP/s for `dtype` (bf16, fp16, fp8, fp4, int8, fp32); cards without it run 16-bit.

        >>> get_gpu("h100").flops("fp8")
        1978900000000000.0
        >>> get_gpu("a100").flops("fp8") == get_gpu("a100").flops("bf16")
        True
        """
        short = _SHORT.get(dtype, dtype)
        rates = self.dense_tflops
        tflops = rates.get(short) or rates.get("bf16") or rates.get("fp16") or max(rates.values())
        return tflops * 1e12


_SHORT = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float8_e4m3fn": "fp8",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
}


@cache
def _rows() -> dict[str, dict[str, Any]]:
    """Every row by its name, unparsed: only the row that is asked for is validated."""
    table = json.loads((catalog_dir() / "gpus.json").read_text())
    return {row["name"]: row for row in table["gpus"]}


@cache
def price_rows() -> dict[str, dict[str, Any]]:
    """`usd_per_hour`, `date` and `source` of every card by its name, unparsed; read off a page or assumed."""
    table = json.loads((catalog_dir() / "gpu_prices.json").read_text(encoding="utf-8"))
    assumed = {key: table["assumed"][key] for key in ("date", "source")}
    rows: dict[str, dict[str, Any]]
    rows = {name: assumed | {"usd_per_hour": usd} for name, usd in table["assumed"]["usd_per_hour"].items()}
    rows.update(table["listed"])
    return rows


def _spec(name: str) -> GpuSpec:
    price = price_rows()[name]
    told = {"price_per_hour": price["usd_per_hour"], "price_source": f"{price['source']}, {price['date']}"}
    return GpuSpec(**_rows()[name], **told)


@cache
def _by_alias() -> dict[str, str]:
    return {_fold(a): name for name, row in _rows().items() for a in (name, row["product"], *row["aliases"])}


def _fold(name: str) -> str:
    """Spelling without case, vendor, blanks, dashes, and without the "MIG" that a slice's size says too.

    "NVIDIA H100-80GB" -> "h10080gb", "h100-mig-3g.40gb" -> "h1003g40gb".
    """
    kept = "".join(c for c in name.casefold() if c.isalnum())
    for vendor in ("nvidia", "geforce", "tesla", "amd", "instinct", "mig"):
        kept = kept.replace(vendor, "")
    return kept


def gpu_names() -> list[str]:
    """Names of all bundled cards, oldest architecture first."""
    return list(_rows())


def get_gpu(name: str) -> GpuSpec:
    """Look up a card by name or alias; `local` asks the machine's first GPU through NVML.

    A card that is not in the table is stated: `gib=20,gbps=672,tflops=44`, or a YAML file of a row's keys.

    Raises KvplanError with the closest names.

    >>> get_gpu("H100").usable_gib, get_gpu("NVIDIA RTX PRO 6000 Blackwell").name
    (79.18, 'rtx-pro-6000')
    """
    if name.casefold() == "local":
        return local()
    if "=" in name:
        return stated(_words(name), name)
    if name.casefold().endswith((".yaml", ".yml")):
        return card_file(Path(name))
    found = _by_alias().get(_fold(name)) or _without_size(name)
    if found is None:
        names = [*gpu_names(), *(a for row in _rows().values() for a in row["aliases"])]
        hint = did_you_mean(name, names) or f"; `kvplan gpus` lists all {len(_rows())}"
        hint += "; a card is stated as gib=20,gbps=672,tflops=44"
        raise KvplanError(f"unknown GPU {name!r}{hint}")
    return _spec(found)


STATED = {
    "gib": "usable_gib",
    "gbps": "bandwidth_gb_s",
    "tflops": "bf16",
    "fp8": "fp8",
    "fp4": "fp4",
    "name": "name",
    "price": "price_per_hour",
    "link": "interconnect_gb_s",
    "cc": "compute_capability",
}
"""Words of a stated card -> what they are."""


def _words(text: str) -> dict[str, str]:
    """What gib=20,gbps=672,tflops=44 says; a word said twice is an error instead of the last one's."""
    found: dict[str, str] = {}
    for key, value in (_pair(part, text) for part in text.split(",")):
        if key in found:
            raise KvplanError(f"--gpu {text[:120]!r}: {key} is there twice")
        found[key] = value
    return found


def _pair(part: str, whole: str) -> tuple[str, str]:
    key, equals, value = part.strip().partition("=")
    if not equals or key.strip().casefold() not in STATED:
        raise KvplanError(
            f"--gpu {whole[:120]!r}: write gib=20,gbps=672,tflops=44; {', '.join(STATED)} are known"
        )
    return key.strip().casefold(), value.strip()


def stated(words: Mapping[str, object], where: str) -> GpuSpec:
    """A card from its memory (GiB that CUDA reports), bandwidth (GB/s) and dense 16-bit rate (TFLOP/s).

    Raises KvplanError for what is missing or no number.

    >>> stated({"gib": "20", "gbps": 672, "tflops": 44}, "a test").total_bytes == 20 * GiB
    True
    """
    if missing := [key for key in ("gib", "gbps", "tflops") if key not in words]:
        raise KvplanError(
            f"--gpu {where[:120]!r}: {', '.join(missing)} missing; write gib=20,gbps=672,tflops=44"
        )
    if unknown := set(words) - set(STATED):
        raise KvplanError(
            f"--gpu {where[:120]!r}: unknown {sorted(unknown)[0]!r}; {', '.join(STATED)} are known"
        )
    numbers = {key: _positive(key, value, where) for key, value in words.items() if key != "name"}
    name, gib = str(words.get("name") or "stated"), numbers["gib"]
    rates = {"bf16": numbers["tflops"], "fp16": numbers["tflops"]}
    rates |= {key: numbers[key] for key in ("fp8", "fp4") if key in numbers}
    link = numbers.get("link", 32.0)
    return GpuSpec(
        name=name,
        product=name,
        compute_capability=numbers.get("cc", 12.0 if "fp4" in numbers else 8.9 if "fp8" in numbers else 8.0),
        nominal_gb=gib,
        usable_gib=gib,
        usable_gib_range=(gib, gib),
        bandwidth_gb_s=numbers["gbps"],
        dense_tflops=rates,
        interconnect="as stated" if "link" in numbers else "assumed: PCIe 4 x16",
        interconnect_gb_s=link,
        pcie_gb_s=32,
        price_per_hour=numbers.get("price", 0.0),
        price_source="stated" if "price" in numbers else "none stated, counted as $0 (price=2.50)",
        source="stated by the user",
    )


def _positive(key: str, value: object, where: str) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = 0.0
    if not 0 < number < 1e7 and not (key == "price" and number == 0):
        raise KvplanError(f"--gpu {where[:120]!r}: {key} must be a number above 0, not {str(value)[:40]!r}")
    return number


def card_file(path: Path) -> GpuSpec:
    """A card from a YAML file: the words of `stated`, or all keys of a row of the table."""
    import yaml

    from kvplan.ground.strict_yaml import complaint_of, load_yaml

    try:
        found = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise KvplanError(f"--gpu {path}: cannot be read ({complaint_of(error)})") from None
    if not isinstance(found, dict):
        raise KvplanError(f"--gpu {path}: holds no card; write gib: 20, gbps: 672, tflops: 44")
    if "gib" in found:
        return stated(found, str(path))
    try:
        return GpuSpec(**{str(key): value for key, value in found.items()})
    except ValidationError as error:
        raise KvplanError(f"--gpu {path}: {complaint(error)}") from None


def split_count(text: str) -> tuple[int, str]:
    """How many cards, and which: `8xH20-141GB`, `2 x h100`, `H100:8`, `RTX 3090 x2`, a cloud's machines; else 1.

    >>> split_count("2xh100"), split_count("h100"), split_count("8x H20-141GB")
    ((2, 'h100'), (1, 'h100'), (8, 'H20-141GB'))
    >>> split_count("H100:8"), split_count("RTX 3090 x2"), split_count("2xp5.48xlarge")
    ((8, 'H100'), (2, 'RTX 3090'), (16, 'h100-sxm'))
    """
    machines, each, name = split_machines(text)
    return machines * each, name


def split_machines(text: str) -> tuple[int, int, str]:
    """How many machines, cards of each, and which; one machine where none is named.

    >>> split_machines("2xp5en.48xlarge"), split_machines("a3-highgpu-8g"), split_machines("8xh100")
    ((2, 8, 'h200'), (1, 8, 'h100-sxm'), (1, 8, 'h100'))
    """
    count, name = _counted(text)
    if re.match(r"\s*(standard_)?[a-z]+\d", name, re.IGNORECASE) and re.search(r"[._-]", name):
        from kvplan.ground.machines import machine  # only for names that may be one's

        if found := machine(name):
            return count, *found
    return 1, count, name


def _counted(text: str) -> tuple[int, str]:
    if found := re.fullmatch(r"\s*(\d{1,4})\s*[xX*]\s*(\S.*)", text):
        count, name = int(found[1]), found[2]
    elif found := re.fullmatch(r"\s*([^:*=]*?\w)(?:\s*[:*]\s*|\s+[xX]\s*)(\d{1,4})\s*", text):
        count, name = int(found[2]), found[1]
    else:
        return 1, text
    return (count, name) if count else (1, text)


def _without_size(name: str) -> str | None:
    """The card of "RTX A5000 24GB": a size that the table's name leaves out, if it is that card's."""
    size = re.search(r"[ _-]?(\d+) ?Gi?B$", name.strip(), re.IGNORECASE)
    if not size:
        return None
    found = _by_alias().get(_fold(name.strip()[: size.start()]))
    return (
        found if found and abs(_rows()[found]["nominal_gb"] - int(size[1])) <= 0.05 * int(size[1]) else None
    )


def match_product(product: str, total_bytes: int) -> GpuSpec:
    """The row whose product name is `product` as a driver prints it; of several, the nearest in size."""
    folded = _fold(product)
    rows = [_spec(name) for name in _rows()]
    same = [
        g
        for g in rows
        if any(_fold(n) in folded or folded in _fold(n) for n in (g.product, g.name, *g.aliases))
    ]
    near = [g for g in same if abs(g.total_bytes - total_bytes) < 0.15 * total_bytes]
    if not near:
        raise KvplanError(
            f"the card calls itself {product!r}, which is not in the table; name a similar one with --gpu"
        )
    return min(
        near, key=lambda g: (folded != _fold(g.product), abs(g.total_bytes - total_bytes), -len(g.product))
    )


def local(index: int = 0) -> GpuSpec:
    """The machine's own card: memory from NVML, rates from the table's row of the same product."""
    try:
        import pynvml
    except ImportError:
        raise KvplanError("--gpu local needs NVML: pip install 'kvplan[gpu]' (nvidia-ml-py)") from None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        product = pynvml.nvmlDeviceGetName(handle)
    except pynvml.NVMLError as error:
        raise KvplanError(
            f"--gpu local: NVML answers {error}; name a card instead, e.g. --gpu h100 (NVML knows no AMD cards)"
        ) from None
    product = product.decode() if isinstance(product, bytes) else product
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError:  # unified memory: NVML does not report it
        return get_gpu(product).model_copy(update={"product": product})
    usable = memory.total - memory.reserved
    row = match_product(product, usable)
    gib = usable / GiB
    return row.model_copy(
        update={
            "name": "local",
            "product": product,
            "usable_gib": gib,
            "usable_gib_range": (gib, gib),
            "source": f"NVML of this machine (total less reserved); rates: {row.source}",
        }
    )
