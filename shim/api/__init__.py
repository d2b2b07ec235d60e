"""The API of containerd and of runc: messages, stubs and service bases."""
