"""Workloads: readers of recorded traces, profiles with published statistics, arrival processes."""
