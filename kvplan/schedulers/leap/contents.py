"""What requests' blocks hold, as a trie of whole sequences: who shares content with whom, and down to which block.

A `Trunk` is the content, future output included, of the request that was the first to leave its parent at depth
`start`. Where a request's path leads is therefore known when it arrives, and nothing here changes while it runs.

Knows contents only: no blocks, no reference counts of blocks, no steps.
"""

from __future__ import annotations

from kvplan.ground.content import output_of
from kvplan.schedulers.leap.state import ContentKey, Path, Trunk
from kvplan.schedulers.request import NEVER, Request

FEW_TRUNKS = 4
"""A path of so many trunks is walked sooner than it is looked up."""


class ContentTrie:
    """Every content that is cached, being computed or wanted; a block's includes `lookahead` tokens after it."""

    def __init__(self, block_size: int, lookahead: int = 0) -> None:
        self.block_size = block_size
        self.lookahead = lookahead
        self._root = Trunk(None, (0, "", 0), None)
        self._long_paths: dict[str, Path] = {}
        """Output of a request that owns a trunk -> the request's path, where that is long."""

    def enter(self, request: Request) -> Path:
        """Return a request's path; its last trunk is held until `leave`."""
        size, more = self.block_size, self.lookahead
        path = self._known_path(request)
        node, _, depth = path[-1] if path else (self._root, 0, 0)
        while True:
            key = _block_key(request, depth, size, more)
            child = node.children.get(key)
            if child is None or child.owner is None or child.owner is request:
                child = child or self._grow(node, key, request)
                child.refs += 1
                path.append((child, depth, NEVER))
                if len(path) > FEW_TRUNKS:
                    self._long_paths[output_of(request.request_id)] = tuple(path)
                return tuple(path)
            end = (common_tokens(request, child.owner, (depth + 1) * size + more) - more) // size
            path.append((child, depth, end))
            node, depth = child, end

    def _known_path(self, request: Request) -> list[tuple[Trunk, int, int]]:
        """Return the beginning of a request's path if it goes on where another one ended: that one's, as far as shared.

        Else a beam of many steps would walk all of its ancestors at each.
        """
        prompt, size = request.prompt, self.block_size
        for last in range(len(prompt) - 1, FEW_TRUNKS // 2, -1):
            known = self._long_paths.get(prompt[last].name)
            if known is None or prompt[last].start:
                continue
            owner = known[-1][0].owner
            if owner is None or owner.prompt != prompt[:last]:
                continue
            shared = owner.num_prompt_tokens + prompt[last].length
            path = list(known[:-1])
            while (
                path and (path[-1][2] + 1) * size + self.lookahead > shared
            ):  # where the other one left this trunk it may stay
                path.pop()
            return path
        return []

    def leave(self, trunk: Trunk) -> None:
        """Drop one reference; a content that nobody refers to is forgotten."""
        trunk.refs -= 1
        while not trunk.refs and trunk.parent is not None:
            parent = trunk.parent
            del parent.children[trunk.key]
            if self._long_paths and trunk.owner is not None:
                self._long_paths.pop(output_of(trunk.owner.request_id), None)
            parent.refs -= 1
            trunk = parent

    def _grow(self, node: Trunk, key: ContentKey, request: Request) -> Trunk:
        child = node.children[key] = Trunk(node, key, request)
        node.refs += 1
        return child


def _block_key(request: Request, depth: int, size: int, lookahead: int = 0) -> ContentKey:
    """Name the content of one block of a request; equal contents have equal names."""
    first = request.prompt[0]
    if not depth and first.length >= size + lookahead:
        return 0, first.name, first.start
    content = request.content(depth * size, (depth + 1) * size + lookahead)
    return (depth, content[0].name, content[0].start) if len(content) == 1 else (depth, content)


def common_tokens(a: Request, b: Request, start: int) -> int:
    """Return the first position from `start` on where the tokens of two different requests differ, outputs included.

    >>> from kvplan.ground.content import Segment
    >>> one = Request("one", (Segment("system", 20), Segment("x", 5)), 8)
    >>> two = Request("two", (Segment("system", 20), Segment("y", 5)), 8)
    >>> common_tokens(one, two, 16)
    20
    """
    position = start
    while True:
        name_a, index_a, left_a = a.token(position)
        name_b, index_b, left_b = b.token(position)
        if name_a != name_b or index_a != index_b:
            return position
        position += min(left_a, left_b)
