"""A turn from its arrival to its end, and the books that are kept of it."""
