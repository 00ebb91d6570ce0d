"""A Hugging Face config.json as checked values: every complaint is one line and names the key.

Knows JSON and its limits. Does not know what the keys mean (`architectures` does).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvplan.ground.errors import KvplanError

MAX_CONFIG_BYTES = 8 << 20
"""Real configs stay under 1 MB (long lists of quantised modules); larger files are something else."""
MAX_LAYERS = 4096
MAX_SIZE = 1 << 40


def read_json(path: Path) -> dict[str, object]:
    """Read a config.json; refuse what is not a JSON object, is too large or nests too deeply."""
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise KvplanError(f"{path}: {size:,} bytes is no model config (limit {MAX_CONFIG_BYTES:,})")
        return parse_json(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise KvplanError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise KvplanError(f"{path}: not UTF-8 text, so not a config.json") from None


def parse_json(text: str, where: str) -> dict[str, object]:
    """Parse JSON text that must hold an object; `where` names it in complaints."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise KvplanError(f"{where}: nested too deeply for a model config") from None
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise KvplanError(f"{where}: a number of thousands of digits is no size of a model") from None
        raise KvplanError(f"{where}: not JSON ({str(error)[:120]})") from None
    if not isinstance(value, dict):
        raise KvplanError(f"{where}: a config.json holds an object, this is a {type(value).__name__}")
    return value


@dataclass(frozen=True, slots=True)
class Keys:
    """Typed reading of one config object; a key that is null counts as absent."""

    name: str
    """The model, for complaints."""
    raw: Mapping[str, object]

    def __contains__(self, key: str) -> bool:
        return self.raw.get(key) is not None

    def error(self, message: str) -> KvplanError:
        """A complaint about this config."""
        return KvplanError(f"{self.name}: config.json: {message}")

    def first(self, *keys: str) -> tuple[str, object]:
        """The first of `keys` that is present, with its value; the value is None where none is."""
        for key in keys:
            if self.raw.get(key) is not None:
                return key, self.raw[key]
        return keys[0], None

    def count(self, *keys: str, default: int | None = None, low: int = 1, high: int = MAX_SIZE) -> int:
        """A whole number under the first of `keys` present, within [low, high]."""
        key, value = self.first(*keys)
        if value is None:
            if default is None:
                raise self.error(f"{' or '.join(keys)} is missing")
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{key} must be a whole number, not {_short(value)}")
        if not low <= value <= high:
            raise self.error(f"{key} is {_short(value)}; it must lie between {low} and {high}")
        return value

    def number(
        self, key: str, default: float | None = None, *, above: float = 0.0, high: float = 1e15
    ) -> float:
        """A number above `above` and at most `high`."""
        value = self.raw.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise self.error(f"{key} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= high:
            raise self.error(
                f"{key} must be a number above {above:g} and at most {high:g}, not {_short(value)}"
            )
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false."""
        value = self.raw.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, not {_short(value)}")
        return value

    def text(self, *keys: str, default: str = "") -> str:
        """A string under the first of `keys` present."""
        key, value = self.first(*keys)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(f"{key} must be text, not {_short(value)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty where absent."""
        value = self.raw.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.error(f"{key} must be a list of texts, not {_short(value)}")
        return tuple(value)

    def counts(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers >= 0; empty where absent."""
        value = self.raw.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.error(f"{key} must be a list of whole numbers, not {_short(value)}")
        return tuple(Keys(self.name, {key: v}).count(key, low=0) for v in value)

    def section(self, key: str) -> Keys:
        """A nested object; empty where absent."""
        value = self.raw.get(key)
        if value is None:
            return Keys(self.name, {})
        if not isinstance(value, dict):
            raise self.error(f"{key} must be an object, not {_short(value)}")
        return Keys(self.name, value)

    def per_layer(self, key: str, num_layers: int) -> tuple[str, ...]:
        """A list of strings with one entry a layer; empty where absent."""
        values = self.texts(key)
        if values and len(values) != num_layers:
            raise self.error(f"{key} has {len(values)} entries for num_hidden_layers {num_layers}")
        return values


def _short(value: object) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return f"this {type(value).__name__}"
    return text if len(text) <= 40 else text[:37] + "..."
