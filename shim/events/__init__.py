"""What happened, told to the manager in order."""
