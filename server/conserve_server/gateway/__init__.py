"""HTTP alone: `app.py` is the application, `routes/` are what can be asked, `http/` is how.

The life of a turn is in `conserve_server.serving`.
"""
