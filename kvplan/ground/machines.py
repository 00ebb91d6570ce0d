"""Machines that clouds rent, by their names: how many cards of which kind.

Sources: the pages of accelerated instance types of EC2, of GPU machine types of Compute Engine, and of the N-series of
Azure's virtual machines; checked (2026-11-29) against tables made from them: rapidsai/deployment (`source/cloud/aws`),
Hugging Face's list of Azure's hardware, and public tables of machines' accelerators.
"""

from __future__ import annotations

import re

ONE_FOUR_EIGHT = {**dict.fromkeys(("", "2", "4", "8", "16"), 1), "12": 4, "24": 4, "48": 8}
"""EC2's g5, g6 and g6e: how large a machine is -> its cards."""
EC2: dict[str, tuple[str, dict[str, int]]] = {
    "p3": ("v100-16gb", {"2": 1, "8": 4, "16": 8}),
    "p3dn": ("v100-32gb", {"24": 8}),
    "p4d": ("a100-40gb", {"24": 8}),
    "p4de": ("a100-80gb", {"24": 8}),
    "p5": ("h100-sxm", {"4": 1, "48": 8}),
    "p5e": ("h200", {"48": 8}),
    "p5en": ("h200", {"48": 8}),
    "p6-b200": ("b200", {"48": 8}),
    "p6-b300": ("b300", {"48": 8}),
    "p6e-gb200": ("gb200", {"36": 4}),
    "g4dn": ("t4", {**dict.fromkeys(("", "2", "4", "8", "16"), 1), "12": 4}),
    "g5": ("a10g", ONE_FOUR_EIGHT),
    "g6": ("l4", ONE_FOUR_EIGHT),
    "g6e": ("l40s", ONE_FOUR_EIGHT),
    "g7e": ("rtx-pro-6000", {"2": 1, "4": 1, "8": 1, "12": 2, "24": 4, "48": 8}),
}
GOOGLE = {
    "a2-highgpu": "a100-40gb",
    "a2-megagpu": "a100-40gb",
    "a2-ultragpu": "a100-80gb",
    "a3-highgpu": "h100-sxm",
    "a3-megagpu": "h100-sxm",
    "a3-edgegpu": "h100-sxm",
    "a3-ultragpu": "h200",
    "a4-highgpu": "b200",
    "a4x-highgpu": "gb200",
}
"""Kind of machine -> its card; `-8g` says how many."""
GOOGLE_STANDARD = {
    "g2": ("l4", {**dict.fromkeys(("4", "8", "12", "16", "32"), 1), "24": 2, "48": 4, "96": 8}),
    "g4": ("rtx-pro-6000", {"48": 1, "96": 2, "192": 4, "384": 8}),
}
"""Its `g2-standard-...` and `g4-standard-...`: how large a machine is -> its cards."""
AZURE = {
    "nc24ads_a100_v4": (1, "a100-80gb-pcie"),
    "nc48ads_a100_v4": (2, "a100-80gb-pcie"),
    "nc96ads_a100_v4": (4, "a100-80gb-pcie"),
    "nd96asr_v4": (8, "a100-40gb"),
    "nd96amsr_a100_v4": (8, "a100-80gb"),
    "nc40ads_h100_v5": (1, "h100-nvl"),
    "nc80adis_h100_v5": (2, "h100-nvl"),
    "nd96isr_h100_v5": (8, "h100-sxm"),
    "nd96isr_h200_v5": (8, "h200"),
    "nd96isr_mi300x_v5": (8, "mi300x"),
    "nc4as_t4_v3": (1, "t4"),
    "nc8as_t4_v3": (1, "t4"),
    "nc16as_t4_v3": (1, "t4"),
    "nc64as_t4_v3": (4, "t4"),
}
"""Size -> cards."""


def machine(name: str) -> tuple[int, str] | None:
    """Cards of a rented machine, and which; None for what is no machine's name.

    >>> machine("p5.48xlarge"), machine("a3-highgpu-8g"), machine("Standard_ND96isr_H200_v5")
    ((8, 'h100-sxm'), (8, 'h100-sxm'), (8, 'h200'))
    """
    name = name.strip().casefold()
    if found := re.fullmatch(r"([a-z0-9-]+)\.(\d*)xlarge", name):
        card, sizes = EC2.get(found[1], ("", {}))
        return (sizes[found[2]], card) if found[2] in sizes else None
    if found := re.fullmatch(r"(a\d+x?-\w+)-(1|2|4|8|16)g(-nolssd|-lowmem)?", name):
        return (int(found[2]), GOOGLE[found[1]]) if found[1] in GOOGLE else None
    if found := re.fullmatch(r"(g[24])-standard-(\d+)", name):
        card, sizes = GOOGLE_STANDARD[found[1]]
        return (sizes[found[2]], card) if found[2] in sizes else None
    return AZURE.get(name.removeprefix("standard_"))
