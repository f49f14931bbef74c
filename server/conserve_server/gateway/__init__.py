"""The gateway. Read `turn.py` for the life of a turn and `app.py` for how the parts are wired."""
