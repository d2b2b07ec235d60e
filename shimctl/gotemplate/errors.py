"""The error of a template, and the limits of all templates."""

from __future__ import annotations

from shim.errors import InvalidError

# Limits.  The longest templates in docker's documentation have a few hundred characters.
TEXT = 65536  # characters of a template
DEPTH = 40  # levels of nested blocks, parentheses, and values that are printed
VARIABLES = 100  # variables that are known at once
STEPS = 200_000  # parts of the tree that are executed, and WEIGHT characters count as one
WEIGHT = 64
OUTPUT = 4 << 20  # characters of the output, and of each text that is made on the way


class TemplateError(InvalidError):
    """A template cannot be parsed or executed; the message names the part and a remedy."""

    def __init__(self, what: str, remedy: str = "use -o json and jq instead") -> None:
        super().__init__(f"--format: {what}; {remedy}")
