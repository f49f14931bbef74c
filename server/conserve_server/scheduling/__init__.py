"""The scheduler: one pure state machine, driven by the gateway and by simulations.

Read in this order: `policy.py`, `conserve.py`, `ledger.py`, `scheduler.py`.
"""
