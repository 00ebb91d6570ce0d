"""What a row of the table says, and how flags are read for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from kvplan.ground.errors import KvplanError

FLAG = "--mm-processor-kwargs"
Sides = tuple[int, int]


@dataclass(frozen=True, slots=True)
class StatedSizes:
    """A tower's facts, those of its largest item among them, and what flags tell its processor."""

    facts: Mapping[str, int]
    told: Mapping[str, Any]
    shapes: tuple[tuple[int, int], ...] = ()
    """Widths and heights that the config lists for its tiled pictures."""
    flat: Mapping[str, Any] = field(default_factory=dict)
    """What flags tell outside of scopes: all that a processor hears when it is loaded."""

    @property
    def loaded(self) -> StatedSizes:
        """The same as the processor is when it is loaded, by which classes count; scopes reach it when it is called."""
        return replace(self, told=self.flat)

    def count(self, key: str, default: int, *, low: int = 1) -> int:
        """A number that flags tell."""
        found = self.told.get(key, default)
        if type(found) is not int or not low <= found <= 10**9:
            raise KvplanError(f"{FLAG}: {key} must be a whole number of {low} at least")
        return found

    def flag(self, key: str, default: bool) -> bool:
        """Yes or no, as flags tell."""
        found = self.told.get(key, default)
        if type(found) is not bool:
            raise KvplanError(f"{FLAG}: {key} must be true or false")
        return found

    def number(self, key: str, default: float) -> float:
        """A number that need not be whole."""
        found = self.told.get(key, default)
        if type(found) not in (int, float) or not 0 < found <= 10**9:
            raise KvplanError(f"{FLAG}: {key} must be a number above 0")
        return float(found)

    def edge(self, key: str, default: int) -> int:
        """A number of pixels in `size`."""
        return StatedSizes(self.facts, self.told.get("size", {})).count(key, default)

    def bounds(self, limits: Sides, edges: tuple[str, str] = ("shortest_edge", "longest_edge")) -> Sides:
        """Pixels at least and at most, `size` under `min_pixels` and `max_pixels`; `edges`: what `size` calls them."""
        least, most = (self.edge(name, limit) for name, limit in zip(edges, limits, strict=True))
        return self.count("min_pixels", least), self.count("max_pixels", most)


class MadeItem(NamedTuple):
    """What a processor makes of a picture."""

    patches: int
    tokens: int


class SizeRule(NamedTuple):
    """The picture that start-up profiles where none is stated, and what is made of one of any sides."""

    width: int
    height: int
    made: Callable[[int, int], MadeItem]
    """Of width and height."""
    kept: int | None = None
    """Tokens that frames of videos leave for it, where its class reckons otherwise than it is made."""

    def clipped(self, told: Mapping[str, int]) -> MadeItem:
        """Of the profiled picture once sides are stated, which never grow."""
        width, height = (
            min(self.width, told.get("width", self.width)),
            min(self.height, told.get("height", self.height)),
        )
        return self.made(width, height)


class Shown(NamedTuple):
    """What a video is made of."""

    facts: Mapping[str, int]
    """With those of the picture as stated."""
    told: Mapping[str, int]
    """Sizes that are stated of a video."""
    way: SizeRule | None
    """Of pictures."""
    limits: Mapping[str, int]
    """Pictures and videos that a prompt may have."""
    context: int
    keys: Mapping[str, Any]
    """Of --mm-processor-kwargs, those that act on pictures."""
    asked: StatedSizes
    """With those that act on videos."""

    @property
    def frames(self) -> int:
        """Frames that are stated; 0: none are."""
        return self.told.get("num_frames", 0)

    @property
    def frame(self) -> MadeItem:
        """A frame of the largest picture's sides, or of those that are stated."""
        assert self.way is not None
        return self.way.clipped(self.told)


Scoped = Literal["read", "idle", "refused"]


class TowerRow(NamedTuple):
    """How stated sizes act on one tower (vLLM 0.32)."""

    way: Callable[[StatedSizes], SizeRule] | None = None
    """None: of every picture the same is made."""
    keys: tuple[str, ...] = ()
    """Of --mm-processor-kwargs, that act."""
    most: bool = False
    """The class states the most tokens by itself: a smaller picture is run, and none is counted less."""
    sound: Callable[[Mapping[str, int], int], Mapping[str, int]] | None = None
    """The facts of a sound of so many stated samples; None: they do not act."""
    video: Callable[[Shown], Mapping[str, int]] | None = None
    """The facts of a video as stated; None: nothing that is stated of one acts."""
    fixed: bool = False
    """Width and height do not act: its class makes up the profiled item without asking."""
    strict: bool = False
    """Other keys end the start."""
    always: bool = False
    """It says what is profiled where nothing is stated too."""
    video_sides: bool = False
    """Width and height of a video act."""
    video_frames: bool = True
    """So do its frames."""
    scoped: Scoped = "read"
    """What keys within images_kwargs and its like do: `idle`, or `refused`, where they end the start."""

    @property
    def picture_acts(self) -> tuple[str, ...]:
        """Stated sizes of a picture that act."""
        return () if self.way is None or self.fixed else ("width", "height")

    @property
    def video_acts(self) -> tuple[str, ...]:
        """Stated sizes of a video that act."""
        frames = self.video is not None and self.video_frames
        return ("num_frames",) * frames + ("width", "height") * self.video_sides

    @property
    def audio_acts(self) -> tuple[str, ...]:
        """Stated sizes of a sound that act."""
        return ("length",) * (self.sound is not None)


def fewer_run(shown: Shown) -> Mapping[str, int]:
    """Fewer frames are run, and none counted less."""
    return {"most_run": shown.frames} if shown.frames else {}


def fewer_counted(shown: Shown) -> Mapping[str, int]:
    """Fewer frames are run and counted."""
    return {"frames": min(shown.facts["frames"], shown.frames)} if shown.frames else {}
