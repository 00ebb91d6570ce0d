"""A profile: what was measured or learned about one engine on one class of GPU, with its source and range.

Two independent sections: `memory` (what lives beside weights and KV) and `timing` (how long steps take).
Bundled ones lie beside the project as `calibration/profiles/*.json`. Knows no arithmetic.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from pydantic import Field, ValidationError

from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import profiles_dir, write_whole, written_whole
from kvplan.profiles.measured_links import MeasuredLinks
from kvplan.profiles.memory_profile import MemoryProfile
from kvplan.profiles.surface_file import packed
from kvplan.profiles.timing_profile import TimingProfile


class Profile(Config):
    """One file of measured facts about an engine on a GPU."""

    name: str
    """File name without .json."""
    gpu: str = ""
    """The GPU table's name of the card it was measured on."""
    engine: str = "vllm"
    """Engine or kernel set."""
    memory: MemoryProfile | None = None
    """Overheads learned there; None: the bundled ones serve."""
    links: MeasuredLinks | None = None
    """Links to host memory and files measured there; None: the catalog's serve."""
    timing: TimingProfile | None = None
    """Step times measured there; None: the profile tells memory alone."""
    source: str = Field("", max_length=2000)
    """Who measured what, when."""
    engine_version: str = ""
    """Of the engine or kernels that were measured."""
    licence: str = ""
    """Of the measurements; only coefficients derived from them are here."""

    @property
    def version(self) -> tuple[int, ...]:
        """`engine_version` as numbers, for comparing."""
        return tuple(int(x) for x in re.findall(r"\d+", self.engine_version)[:3])


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a profile: a bundled one's name, or a path to a JSON file."""
    path = Path(name_or_path)
    bundled = profiles_dir() / f"{name_or_path}.json"
    if path.suffix != ".json" and _is_file(bundled):
        path = bundled
    try:
        found = Profile.model_validate_json(path.read_text(encoding="utf-8"))
        if found.timing is None or not found.timing.kernels:
            return found
        return found.model_copy(update={"timing": found.timing.with_surfaces(surfaces_path(path))})
    except OSError:
        known = [p.stem for p in sorted(profiles_dir().glob("*.json"))]
        said = str(name_or_path)[:120]
        raise KvplanError(
            f"no profile {said!r}{did_you_mean(said, known)}; bundled: {', '.join(known)}"
        ) from None
    except (ValidationError, UnicodeDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(x) for x in first["loc"])
        raise KvplanError(f"{path}: not a profile ({where + ': ' if where else ''}{first['msg']})") from None


def surfaces_path(profile: Path) -> Path:
    """Where the measured surfaces of a profile's file lie."""
    return profile.with_suffix(".surfaces.xz")


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile as JSON, as `load_profile` reads it, whole or not at all; folders are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if profile.timing is not None and profile.timing.kernels:
            with written_whole(surfaces_path(path), mode="wb") as file:
                file.write(packed(profile.timing.surfaces))
        write_whole(path, profile_json(profile))
    except OSError as error:
        raise KvplanError(f"{path}: cannot be written ({error.strerror})") from None


def profile_json(profile: Profile) -> str:
    """The text of a profile's file."""
    return profile.model_dump_json(indent=1, exclude_none=True) + "\n"


@cache
def bundled_profiles() -> tuple[Profile, ...]:
    """All profiles that come with kvplan."""
    return tuple(load_profile(path) for path in sorted(profiles_dir().glob("*.json")))


def pick(gpu: str, engine: str = "vllm") -> tuple[Profile | None, str]:
    """The profile with step times for this card, and what to know about the choice.

    The same engine first, then the newest version; another engine's profile is better than none, and said so.
    """
    found = [p for p in bundled_profiles() if p.timing is not None and p.gpu == gpu]
    if not found:
        return None, f"no profile of {gpu}; `kvplan fit` makes one from measurements"
    same = [p for p in found if p.engine == engine]
    best = max(same or found, key=lambda p: p.version)
    return best, "" if same else f"{best.name} measured {best.engine}, not {engine}: fixed times may differ"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL
        return False
