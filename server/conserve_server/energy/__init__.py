"""Joules: where they are read, whose they are, and what was charged to whom."""
