"""The kernel: words every room shares. Standard library only, nothing here waits or starts anything."""
