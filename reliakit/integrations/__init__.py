"""Integrations with other libraries, one file each: a library is only imported, and needed, by its own file."""
