"""The events of tasks: their order, their journal and their delivery to the manager."""
