"""The life of turns and conversations, without HTTP. Read `turns/turns.py`, then `conversations.py`."""
