"""A container and its processes: the state of each, and what may be done to it."""
