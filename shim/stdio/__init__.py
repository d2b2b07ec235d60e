"""The relays, pipes, files, terminals and logging programs of a process's stdio."""
