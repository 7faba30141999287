"""A trained model that changes: tasks are added, renamed, removed, adapters are replaced."""
