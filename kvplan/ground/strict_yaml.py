"""YAML as people write it into files and flags: read safely; a key said twice is an error, not the last one's."""

from __future__ import annotations

from typing import Any

import yaml

MAX_KEYS = 200_000
"""Of one mapping, merged ones counted."""
MAX_MERGES = 16
"""Mappings merged into one: their keys are copied."""


class StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader (libyaml's, where it is there, takes a tenth of the time), but a key said twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raise yaml.YAMLError for a key said twice, one that is no word, too many merges."""
        seen = set()
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                if len(value.value) > MAX_MERGES and isinstance(value, yaml.SequenceNode):
                    raise _refusal(f"more than {MAX_MERGES} mappings are merged into one", key.start_mark)
            elif not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key must be a plain word", key.start_mark)
            elif key.value in seen:
                raise _refusal(f"key {key.value[:80]!r} is there twice", key.start_mark)
            else:
                seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Raise yaml.YAMLError where merges make a mapping too large."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_KEYS:
            raise _refusal(f"more than {MAX_KEYS} merged keys", node.start_mark)


def load_yaml(text: str) -> Any:
    """The values of a text. Raises yaml.YAMLError; of a key said twice, its first line says which.

    >>> load_yaml("{a: 1, b: [2]}")
    {'a': 1, 'b': [2]}
    """
    return yaml.load(text, StrictLoader)


def complaint_of(error: Exception, most: int = 120) -> str:
    """What is wrong with a text that is no YAML, in a line."""
    said = getattr(error, "problem", None) or next(iter(str(error).splitlines()), "unreadable")
    mark = getattr(error, "problem_mark", None)
    return said[:most] + (f", line {mark.line + 1}" if mark else "")


def _refusal(what: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, mark)
