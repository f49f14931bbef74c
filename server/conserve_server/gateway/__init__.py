"""HTTP alone: `app.py` wires the parts, `routes/` are what can be asked, `http/` is how.

The life of a turn is in `conserve_server.serving`.
"""
