"""The patterns that stand between a caller and a dependency that may fail."""
