"""What a request asks: its fields, whose it is, how long its prompt is, what an engine may be told."""
