"""Accounts and access tokens: FastAPI, async."""
