"""The kernel: what every other package of reliakit shares. Standard library only; nothing here waits or starts."""
