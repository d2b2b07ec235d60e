"""The commands of shimctl, one in each module: its declaration, its work and its printing.

``command`` is the command of the module.  Only click and light modules are imported at
the top of a module; its functions import the rest.
"""
