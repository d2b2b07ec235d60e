"""A client's side of a process's stdio: relay it, share it between clients, detach and come back.

Nothing here starts a container or a shim, and nothing prints.
"""
