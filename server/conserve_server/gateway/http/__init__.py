"""HTTP as the gateway speaks it: connections, bodies, heads, errors in each API's words."""
