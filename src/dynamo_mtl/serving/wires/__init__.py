"""Interfaces that clients of other servers speak, as thin layers over the same engine."""
