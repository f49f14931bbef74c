"""Engines: real vLLM over HTTP, local vLLM processes, and the emulated engine."""
