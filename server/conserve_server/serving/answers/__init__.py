"""Engines' answers on their way to a client: read as they pass, never held up."""
