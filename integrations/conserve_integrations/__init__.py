"""Agent frameworks and ConServe: one framework a file."""
