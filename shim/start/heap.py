"""The heap of a parent of daemons, arranged so that each child copies few of its pages.

A child shares a page until one side writes to it, and CPython writes into what it
only reads: it counts references in the object itself.  Three things help.

- Program objects (code, functions, types, constants) are made immortal where
  CPython has such objects, 3.12 and later: their counts are not written any more.
- The gaps that freed objects left are filled, so that what a child makes lies
  together on pages of its own, not on shared ones all over the heap.
- The collector forgets what is there (``gc.freeze``).
"""

from __future__ import annotations

import gc
import types
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

from shim.linux import libc

if TYPE_CHECKING:
    from collections.abc import Callable

# What a program is made of and what it only reads.  Nothing here holds a file or
# a lock, and none of it has a place where its end would matter.
_PROGRAM = frozenset(
    {
        bytes,
        classmethod,
        float,
        frozenset,
        int,
        property,
        staticmethod,
        str,
        tuple,
        types.BuiltinFunctionType,
        types.CellType,
        types.ClassMethodDescriptorType,
        types.CodeType,
        types.FunctionType,
        types.GetSetDescriptorType,
        types.MemberDescriptorType,
        types.MethodDescriptorType,
        types.ModuleType,
        types.WrapperDescriptorType,
    }
)

# CPython's small objects: pools of one size each, by steps of 16 up to 512 bytes.
# Source: Objects/obmalloc.c.
_POOL, _HEADER, _STEP, _LARGEST = 16384, 48, 16, 512
# Bytes of a bytes object beside its content.
_BYTES = 33
# Pools of one size after which this allocator is not the one we know, as with
# PYTHONMALLOC=malloc, -X dev or a build without pymalloc.
_MAX_POOLS = 100

_fillers: list[object] = []


def arrange() -> None:
    """Arrange the heap.  To be called once, before the first fork, when all is loaded and warm."""
    gc.collect()
    if libc.has_immortals():
        libc.make_immortal(_program())
    # The largest first: to find out that the allocator is another one costs the least there.
    for size in range(_LARGEST, 0, -_STEP):
        filler = _fill(size, _factory_of(size))
        if filler is None:
            break
        _fillers.append(filler)
    gc.collect()
    gc.freeze()


def _program() -> list[object]:
    """Return all program objects."""
    pending: list[Any] = gc.get_objects()  # first, or what is made here would be among them
    found: list[object] = []
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        kind = type(one)
        if kind in _PROGRAM or isinstance(one, type):
            found.append(one)
        if kind is types.ModuleType:  # which lives as long as its names
            found.append(vars(one))
        pending.extend(gc.get_referents(one))
        if kind is types.CodeType:  # which the collector does not know
            pending.extend((one.co_consts, one.co_names, one.co_name, one.co_qualname))
    return found


def _factory_of(size: int) -> Callable[[], object]:
    """Return what makes a new object that takes ``size`` bytes."""
    if size == 16:
        return object
    if size == 32:
        return count(1 << 40).__next__
    return lambda: bytes(size - _BYTES)


def _fill(size: int, make: Callable[[], object]) -> list[object] | None:
    """Make objects of ``size`` until no gap is left; return those that fill gaps.

    None if the allocator has no pools of that size; nothing stays then.
    """
    made: list[object] = []
    length = (_POOL - _HEADER) // size
    # Nothing but ours is made between the first and the last of a row: no iterator,
    # no list that grows, and no number, which takes 32 bytes.
    row: list[object] = [None] * length
    places = list(range(length))
    for _ in range(_MAX_POOLS):
        for place in places:
            row[place] = make()
        first_new = _first_new(row, size)
        made += row[:first_new]
        if first_new < length:
            return made
    return None


def _first_new(row: list[object], size: int) -> int:
    """Return where in ``row`` a pool begins that was new, its length if nowhere.

    There is no new pool while an old one has a gap.
    """
    for place, one in enumerate(row):
        if id(one) % _POOL == _HEADER:
            neighbours = pairwise(row[place:])
            if all(id(right) - id(left) == size for left, right in neighbours):
                return place
    return len(row)
