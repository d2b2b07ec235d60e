"""Everything before a daemon serves: the launcher, the fork server and its children, bootstrap.

Nothing here runs in a daemon once it has answered ``start``.
"""
