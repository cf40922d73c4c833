"""Sets that are joined step by step (union-find)."""

from __future__ import annotations

from array import array

from densitywatch.data.image_table import Table, one_value


class Union:
    """The numbers 0 to `count` - 1, each in a set of its own until it is joined with another: 4 bytes a number."""

    def __init__(self, count: int) -> None:
        self._parent = array("i", range(count))

    def find(self, index: int) -> int:
        """The smallest number in the set of `index`."""
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(self, one: int, other: int) -> None:
        """Make the sets of both one."""
        one, other = self.find(one), self.find(other)
        self._parent[max(one, other)] = min(one, other)

    def write(self, table: Table) -> None:
        """Fill the table `joined`: each number, and the smallest of its set."""
        table.execute("DELETE FROM joined")
        table.executemany("INSERT INTO joined VALUES (?, ?)", ((index, self.find(index)) for index in range(len(self))))

    def __len__(self) -> int:
        return len(self._parent)


def union_of_images(table: Table) -> Union:
    """Every image in a set of its own."""
    return Union(one_value(table, "SELECT count(*) FROM image"))
