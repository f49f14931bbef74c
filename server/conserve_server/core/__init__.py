"""Values and time: what every other room speaks in. No I/O."""
