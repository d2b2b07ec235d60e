"""The control group of a container: who is in it, what it uses, whether memory ran out."""
