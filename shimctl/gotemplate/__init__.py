"""Go templates, as far as users of docker and nerdctl write them after ``--format``.

Supported are fields, variables, ``if``, ``with``, ``range``, pipelines, comments and the
functions of :mod:`shimctl.gotemplate.functions`.  A template is data: it runs no code, and
its text, nesting, steps and output have limits, so that every template ends.  Any other
part is a :class:`TemplateError`, which names the part and the alternative.

``lexing`` splits the text, ``parsing`` makes the tree, ``running`` executes it.
All modules are pure.

Source: the documentation of Go's text/template; docker's "Format command and log output".
"""

from __future__ import annotations

from shimctl.gotemplate.errors import TemplateError
from shimctl.gotemplate.running import Template
from shimctl.gotemplate.values import Document, Safe

__all__ = ["Document", "Safe", "Template", "TemplateError"]
