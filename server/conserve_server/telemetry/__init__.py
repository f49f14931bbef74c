"""Spans, metrics and the timeline that is read back from them."""
