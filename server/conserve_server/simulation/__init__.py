"""The simulator: the served scheduler on a virtual clock, over modelled engines and real agent sessions."""
