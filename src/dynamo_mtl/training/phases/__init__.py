"""One module a phase."""
