"""The radix tree of cached prefixes: what is shared, what may go, what went least recently.

A node holds a run of tokens, named by segments; a tree of n sequences has O(n) nodes however long they are.
Knows sizes and names, not where in memory a token lies.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from kvplan.ground.content import Content, Segment, length_of, merge_segments

TokenId = Callable[[str, int], Hashable]
"""(stream, index) -> the token's value. Without it, tokens are equal if they have the same name."""


def cut(key: Content, start: int, end: int) -> Content:
    """Take positions `start .. end - 1` of a run of tokens.

    >>> cut((Segment("a", 3), Segment("b", 3)), 2, 5)
    (Segment(name='a', length=1, start=2), Segment(name='b', length=2, start=0))
    """
    pieces, position = [], 0
    for name, length, first in key:
        low, high = max(start - position, 0), min(end - position, length)
        if low < high:
            pieces.append(Segment(name, high - low, first + low))
        position += length
        if position >= end:
            break
    return tuple(pieces)


def shared_length(a: Content, b: Content, token_id: TokenId | None = None) -> int:
    """Count the tokens that two runs have in common from their start (SGLang `RadixKey.match`).

    >>> shared_length((Segment("a", 3), Segment("b", 3)), (Segment("a", 3), Segment("b", 1), Segment("c", 1)))
    4
    """
    i = j = at_a = at_b = total = 0
    while i < len(a) and j < len(b):
        (name, length, start), (other, other_length, other_start) = a[i], b[j]
        n = min(length - at_a, other_length - at_b)
        if (name, start + at_a) == (other, other_start + at_b):
            same = n
        elif token_id is None:
            return total
        else:
            pairs = (
                (token_id(name, start + at_a + k), token_id(other, other_start + at_b + k)) for k in range(n)
            )
            same = next((k for k, (x, y) in enumerate(pairs) if x != y), n)
        total += same
        if same < n:
            return total
        at_a, at_b = at_a + n, at_b + n
        if at_a == length:
            i, at_a = i + 1, 0
        if at_b == other_length:
            j, at_b = j + 1, 0
    return total


@dataclass(slots=True, eq=False, repr=False)
class TreeNode:
    """A run of tokens below its parent's (SGLang `TreeNode`)."""

    id: int
    key: Content
    length: int
    parent: TreeNode | None
    last_access_time: int
    children: dict[Hashable, TreeNode] = field(default_factory=dict)
    lock_ref: int = 0
    """Requests that hold it."""
    hit_count: int = 0


EVICTION_STRATEGIES: dict[str, Callable[[TreeNode], tuple[int, int]]] = {
    "lru": lambda node: (0, node.last_access_time),
    "lfu": lambda node: (node.hit_count, node.last_access_time),
}
"""Name -> a leaf's rank, the smallest goes first (SGLang `evict_policy.py`)."""


class RadixCache:
    """Cached prefixes, in tokens (SGLang `RadixCache`; `UnifiedRadixCache` decides alike for full attention)."""

    def __init__(
        self, page_size: int = 1, eviction_policy: str = "lru", token_id: TokenId | None = None
    ) -> None:
        self.page_size = page_size
        self.rank = EVICTION_STRATEGIES[eviction_policy]
        self.token_id = token_id
        self.evictable_size = 0
        """Cached tokens that nobody holds."""
        self.protected_size = 0
        """Cached tokens that running requests hold."""
        self._clock = 0
        self.num_nodes = 0
        """Nodes that there have been so far."""
        self.root = self._new_node((), None)
        self.root.lock_ref = 1
        self._leaves: dict[TreeNode, None] = {}
        """Unlocked leaves (SGLang `evictable_leaves`)."""

    def has_page(self, page: Content) -> bool:
        """Whether any cached sequence begins with this page."""
        return length_of(page) == self.page_size and self._child_key(page) in self.root.children

    def match_prefix(self, key: Content) -> tuple[int, TreeNode]:
        """Return how many tokens are cached and the node where they end; splits a node that matches in part."""
        remaining = self._page_aligned(key)
        node, total, now = self.root, 0, self._now()
        while remaining and (child := node.children.get(self._child_key(remaining))):
            child.last_access_time = now
            same = self._match(child.key, remaining)
            total += same
            if same < child.length:
                return total, self._split(child, same)
            node, remaining = child, self._rest(remaining, same)
        return total, node

    def insert(self, key: Content, inserted_len: int = 0) -> int:
        """Add a sequence; return how many of its tokens were there already (SGLang `_insert_helper`).

        Nodes within the first `inserted_len` tokens do not count as hit once more (lfu).
        """
        remaining = self._page_aligned(key)
        node, total, now = self.root, 0, self._now()
        while remaining and (child := node.children.get(self._child_key(remaining))):
            child.last_access_time = now
            same = self._match(child.key, remaining)
            total += same
            remaining = self._rest(remaining, same)
            node = self._split(child, same) if same < child.length else child
            node.hit_count += total > inserted_len
        if remaining:
            leaf = self._new_node(remaining, node)
            leaf.hit_count += total + leaf.length > inserted_len
            node.children[self._child_key(remaining)] = leaf
            self.evictable_size += leaf.length
            self._update_leaf_status(node)
            self._update_leaf_status(leaf)
        return total

    def evict(self, num_tokens: int) -> int:
        """Drop whole unlocked leaves until so many tokens went, or none is left; return the tokens (SGLang `evict`)."""
        heap = [(self.rank(leaf), leaf.id, leaf) for leaf in self._leaves]
        heapify(heap)
        num_evicted = 0
        while num_evicted < num_tokens and heap:
            leaf = heappop(heap)[2]
            parent = leaf.parent
            assert parent is not None
            num_evicted += leaf.length
            self._delete_leaf(leaf, parent)
            if not parent.children and not parent.lock_ref:
                heappush(heap, (self.rank(parent), parent.id, parent))
        return num_evicted

    def inc_lock_ref(self, node: TreeNode) -> TreeNode:
        """Hold a node and all above it."""
        held: TreeNode | None = node
        while held is not None and held is not self.root:
            if not held.lock_ref:
                self.evictable_size -= held.length
                self.protected_size += held.length
            held.lock_ref += 1
            self._update_leaf_status(held)
            held = held.parent
        return node

    def dec_lock_ref(self, node: TreeNode) -> None:
        """Let go of a node and all above it."""
        held: TreeNode | None = node
        while held is not None and held is not self.root:
            held.lock_ref -= 1
            assert held.lock_ref >= 0, "a prefix was let go of twice"
            if not held.lock_ref:
                self.evictable_size += held.length
                self.protected_size -= held.length
            self._update_leaf_status(held)
            held = held.parent

    def dfs_weight_order(self, nodes: Sequence[TreeNode]) -> list[int]:
        """Order requests, given the nodes where they end: subtrees with more requests first, a node after its children.

        A node's weight is its own requests and its children's weights (SGLang `_dfs_weight_order`); ties keep
        the order in which the tree grew.
        """
        ends: dict[TreeNode, list[int]] = {}
        for index, node in enumerate(nodes):
            ends.setdefault(node, []).append(index)
        weight = {node: len(indices) for node, indices in ends.items()}
        for node in reversed(self._preorder(lambda child: 0)):
            weight[node] = weight.get(node, 0) + sum(weight[child] for child in node.children.values())
        heaviest_last = self._preorder(lambda child: weight[child], reverse_siblings=True)
        return [index for node in reversed(heaviest_last) for index in ends.get(node, ())]

    # --- inside -----------------------------------------------------------------------------

    def _preorder(self, rank: Callable[[TreeNode], int], reverse_siblings: bool = False) -> list[TreeNode]:
        """All nodes, parents first; siblings by falling rank, or the other way round."""
        order, stack = [], [self.root]
        while stack:
            node = stack.pop()
            order.append(node)
            siblings = sorted(node.children.values(), key=lambda child: -rank(child))
            stack += siblings if reverse_siblings else siblings[::-1]
        return order

    def _now(self) -> int:
        self._clock += 1
        return self._clock

    def _new_node(self, key: Content, parent: TreeNode | None) -> TreeNode:
        self.num_nodes += 1
        return TreeNode(self.num_nodes, key, length_of(key), parent, self._now())

    def _page_aligned(self, key: Content) -> Content:
        length = length_of(key)
        aligned = length // self.page_size * self.page_size
        return key if aligned == length else cut(key, 0, aligned)

    def _rest(self, key: Content, start: int) -> Content:
        return cut(key, start, length_of(key))

    def _match(self, key: Content, other: Content) -> int:
        return shared_length(key, other, self.token_id) // self.page_size * self.page_size

    def _child_key(self, key: Content) -> Hashable:
        """What a node's first page is found by."""
        if self.page_size > 1:
            return merge_segments(cut(key, 0, self.page_size))
        name, _, start = key[0]
        return (name, start) if self.token_id is None else self.token_id(name, start)

    def _split(self, child: TreeNode, length: int) -> TreeNode:
        """Cut a node in two; return the upper one (SGLang `_split_node`)."""
        parent = child.parent
        assert parent is not None
        assert 0 < length < child.length
        upper = self._new_node(cut(child.key, 0, length), parent)
        upper.hit_count, upper.lock_ref = child.hit_count, child.lock_ref
        parent.children[self._child_key(child.key)] = upper
        child.parent, child.key = upper, self._rest(child.key, length)
        child.length -= length
        upper.children[self._child_key(child.key)] = child
        return upper

    def _delete_leaf(self, leaf: TreeNode, parent: TreeNode) -> None:
        del parent.children[self._child_key(leaf.key)]
        del self._leaves[leaf]
        self.evictable_size -= leaf.length
        self._update_leaf_status(parent)

    def _update_leaf_status(self, node: TreeNode) -> None:
        if node.lock_ref or node.children:
            self._leaves.pop(node, None)
        else:
            self._leaves[node] = None
