"""What stands between a caller and a dependency that may fail."""
