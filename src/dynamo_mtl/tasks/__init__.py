"""Task types: one file each, discovered."""
