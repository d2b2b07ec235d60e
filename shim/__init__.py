"""A containerd shim v2: one small daemon per container."""
