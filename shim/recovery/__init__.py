"""Copies of a daemon's fds and states in the fork server, for a replacement of the daemon.

The fork server (:mod:`shim.start.keeper`) holds the copies.  If the daemon is killed, the
server forks a replacement, which inherits the fds and reads the states.
This package is the daemon's side: it sends fds to the keeper, writes states and reads both.
It has no code for containers or their streams.
"""
