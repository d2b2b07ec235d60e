"""What belongs to the host: installed executables, the fork server, cgroups and processes.

Nothing here speaks the Task API.
"""
