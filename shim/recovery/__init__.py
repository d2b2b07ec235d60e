"""What a daemon leaves with the fork server, so that a replacement can go on after its death.

The fork server (:mod:`shim.start.keeper`) holds copies of a daemon's fds.  If the daemon
is killed, the server forks a replacement, which gets the fds and the states.
This package has the daemon's side: it hands over fds, writes states and reads both.
It does not know of containers and their streams.
"""
