"""Interfaces of the Linux kernel that the standard library does not wrap."""
