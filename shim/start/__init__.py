"""The actions of the executable: the launcher, the fork server and the start of a daemon.

No code of this package runs in a daemon after the launcher has printed the answer.
"""
