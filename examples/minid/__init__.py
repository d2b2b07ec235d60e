"""minid: a small container manager on ``import shimctl``.  README.md says what it does."""
