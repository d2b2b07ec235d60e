"""minid: a small container manager on ``import shimctl``.  README.md describes it."""
