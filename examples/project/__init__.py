"""Projects and the people on them: Starlette, async, asks the employee service for names."""
