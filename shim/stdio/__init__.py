"""Everything that carries a process's stdin, stdout and stderr."""
