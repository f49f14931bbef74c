"""What is remembered of conversations, for reports, watchers and summaries."""
