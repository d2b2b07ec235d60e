"""Containers that no manager owns: running one from start to exit, its directory and its logs.

The library below speaks to any shim; this package is for the shims that we launch ourselves.
"""
