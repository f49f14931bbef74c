"""Conversations that no client names, known by their message history."""
