"""Every door that outside bytes come in by."""

from __future__ import annotations

from functools import cache

from tests.faults.hostile import doors_of_files, doors_of_folders, doors_of_requests, doors_of_texts
from tests.faults.hostile.attempt import Door


@cache
def all_doors() -> dict[str, Door]:
    """By name, in the order of the table."""
    groups = (doors_of_files, doors_of_texts, doors_of_folders, doors_of_requests)
    return {door.name: door for group in groups for door in group.doors()}


def find_door(name: str) -> Door:
    return all_doors()[name]
