"""Arranges the heap of the fork server, so that each child copies few of its pages.

A child shares a page until one side writes to it.  CPython writes to objects that a
program only reads, since each object holds its reference count.  Three steps help.

- Program objects (code, functions, types, constants) become immortal on CPython 3.12
  and later, so their counts are not written any more.
- The gaps that freed objects left are filled.  Then a child's new objects lie together
  on new pages, and not in gaps of shared pages all over the heap.
- The collector skips all present objects (``gc.freeze``), so it writes nothing to them.

Last, the server unmaps the code of the libraries that only the imports needed: 1.3 MiB.
"""

from __future__ import annotations

import gc
import types
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

from shim.linux import libc

if TYPE_CHECKING:
    from collections.abc import Callable

# The types of a program's objects and constants.  They hold no file and no lock, and
# no code depends on their end.
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

# CPython allocates small objects from pools of one size each, in steps of 16 bytes up
# to 512.  The pools' size, their header, the step and the limit are in bytes.
# Source: Objects/obmalloc.c.
_POOL, _HEADER, _STEP, _LARGEST = 16384, 48, 16, 512
# Bytes of a bytes object in addition to its content.
_BYTES = 33
# After so many pools of one size, the allocator must be another one than pymalloc, as
# with PYTHONMALLOC=malloc, -X dev or a build without pymalloc.
_MAX_POOLS = 100

_fillers: list[object] = []


def arrange() -> None:
    """Arrange the heap.  Call it once, after imports and warm-up and before the first fork."""
    gc.collect()
    if libc.has_immortals():
        libc.make_immortal(_program())
    # The largest first: with another allocator than pymalloc, the first size fails, and
    # this one needs the fewest objects.
    for size in range(_LARGEST, 0, -_STEP):
        filler = _fill(size, _factory_of(size))
        if filler is None:
            break
        _fillers.append(filler)
    gc.collect()
    gc.freeze()
    libc.drop_text()


def _program() -> list[object]:
    """Return all program objects."""
    pending: list[Any] = gc.get_objects()  # first, without the objects that this function creates
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
        if kind is types.ModuleType:  # the dict of a module lives as long as the module
            found.append(vars(one))
        pending.extend(gc.get_referents(one))
        if kind is types.CodeType:  # the collector does not traverse code objects
            pending.extend((one.co_consts, one.co_names, one.co_name, one.co_qualname))
    return found


def _factory_of(size: int) -> Callable[[], object]:
    """Return a callable that creates an object of ``size`` bytes."""
    if size == 16:
        return object
    if size == 32:
        return count(1 << 40).__next__
    return lambda: bytes(size - _BYTES)


def _fill(size: int, make: Callable[[], object]) -> list[object] | None:
    """Create objects of ``size`` bytes until no gap is left; return those that fill gaps.

    Returns None, and frees all of them, if the allocator has no pools of that size.
    """
    made: list[object] = []
    # One more than a pool has: the place in the row where a new pool begins differs from row
    # to row, so it is not always the last one, where it cannot be seen.
    length = (_POOL - _HEADER) // size + 1
    # Between the first and the last object of a row, no other object is created: no
    # iterator, no growing list, and no number, which takes 32 bytes.
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
    """Return the index in ``row`` where a new pool begins, or the length of ``row``.

    The allocator starts a new pool only when no old pool of the size has a gap.  The last
    object has no neighbour that would show it: another allocator may have put it there.
    """
    for place, one in enumerate(row[:-1]):
        if id(one) % _POOL == _HEADER:
            neighbours = pairwise(row[place:])
            if all(id(right) - id(left) == size for left, right in neighbours):
                return place
    return len(row)
