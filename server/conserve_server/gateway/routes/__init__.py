"""The gateway's routes, one group a file."""
