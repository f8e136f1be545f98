"""Other libraries, one file each: nothing is imported before you import that file, and nothing of it is required."""
