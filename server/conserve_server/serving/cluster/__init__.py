"""The engines: which are up, which leave, and what a changed configuration makes of them."""
