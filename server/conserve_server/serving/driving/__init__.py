"""The scheduler's driver: reports go in, actions come out, and loops that run beside turns."""
