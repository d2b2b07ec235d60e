"""The example of a manager: pure parts, and the whole of it killed again and again."""
