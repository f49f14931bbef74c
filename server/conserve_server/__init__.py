"""The ConServe gateway, its scheduler and its engines. Start reading at `scheduling/`."""
