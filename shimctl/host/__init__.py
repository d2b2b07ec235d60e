"""Installs the executables; inspects and controls fork servers, cgroups and processes.

No module here uses the Task API.
"""
