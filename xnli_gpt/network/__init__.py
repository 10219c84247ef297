"""The network, and what shapes it."""
