"""Fit the columns of a table into the width of a terminal.

Only the columns that may be cut become narrower, the widest first: an id or a status that
is cut would be useless.  If that is not enough, the terminal wraps the lines.

rich has tables, too.  Loading them takes 50 ms, a third of the time of ``shimctl ps``, and
they cut every column in proportion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

LEAST = 8  # columns that a cell keeps
_MARK = "…"


def fitted(widths: Sequence[int], room: int, elastic: Collection[int], gap: int = 2) -> list[int]:
    """Return the widths of the columns in ``room`` characters, ``gap`` ones between two.

    ``elastic`` are the indexes of the columns that may be cut.
    """
    found = list(widths)
    excess = sum(found) + gap * (len(found) - 1) - room
    while excess > 0:
        wide = [at for at in elastic if at < len(found) and found[at] > LEAST]
        if not wide:
            break
        most = max(found[at] for at in wide)
        widest = [at for at in wide if found[at] == most]
        # Cut the widest to the next width, all by the same amount.
        others = (found[at] for at in wide if found[at] < most)
        step = min(most - max((LEAST, *others)), -(-excess // len(widest)))
        for at in widest:
            taken = min(step, excess)
            found[at] -= taken
            excess -= taken
    return found


def cut(text: str, width: int) -> str:
    """Cut ``text`` to ``width`` characters; the last one is then an ellipsis."""
    return text if len(text) <= width else f"{text[: max(width - 1, 0)]}{_MARK}"
