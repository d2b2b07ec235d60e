"""The OCI runtime: what to say to it, and how to run it."""
