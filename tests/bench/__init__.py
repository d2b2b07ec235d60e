"""The benchmark: shims side by side, in turns.  ``python -m tests.bench --help``."""
