"""Serves the three services on a real PostgreSQL, breaks things under load, and judges what came of it."""
