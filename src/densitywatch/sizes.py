"""The size of images: one number for squares, or (height, width)."""

from __future__ import annotations

from typing import Any

Size = int | tuple[int, int]
"""Pixels: the side of a square, or height and width."""


def height_width(size: Size) -> tuple[int, int]:
    """Height and width in pixels."""
    return (size, size) if isinstance(size, int) else size


def as_size(height: int, width: int) -> Size:
    """The size of images of `height` x `width` pixels; of squares it is one number."""
    return height if height == width else (height, width)


def in_pixels(size: Size) -> str:
    """Width and height in words, as people say them: `2000 x 500`."""
    height, width = height_width(size)
    return f"{width} x {height}"


def read_size(value: Any) -> Size:
    """A size as JSON has it: a number, or a list of height and width. Raises ValueError where it is neither."""
    sides = (value, value) if type(value) is int else value
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(type(side) is int for side in sides):
        raise ValueError(f"{value!r:.40} is no size of images")
    return as_size(*sides)


def for_json(size: Size) -> int | list[int]:
    """The size as JSON gives it back; `read_size` reads it."""
    return size if isinstance(size, int) else list(size)
