"""What the kernel offers and the standard library does not wrap."""
