"""The OCI runtime: its command lines, its messages, and the commands that run it."""
