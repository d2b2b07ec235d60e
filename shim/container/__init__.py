"""A container and its processes: their states, and the operations on them."""
