"""The control group of a container: its processes, its resource usage, its OOM kills."""
