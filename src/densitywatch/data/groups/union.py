"""Sets that are joined step by step (union-find)."""

from __future__ import annotations


class Union:
    """The numbers 0 to `count` - 1, each in a set of its own until it is joined with another."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, index: int) -> int:
        """The number that stands for the set of `index`."""
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(self, one: int, other: int) -> None:
        """Make the sets of both one."""
        self._parent[self.find(one)] = self.find(other)

    def sets(self) -> list[list[int]]:
        """All sets, in the order of their first members."""
        found: dict[int, list[int]] = {}
        for index in range(len(self._parent)):
            found.setdefault(self.find(index), []).append(index)
        return list(found.values())
