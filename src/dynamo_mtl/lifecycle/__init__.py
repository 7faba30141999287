"""Changes to a trained model: adding, renaming and removing tasks, and replacing adapters."""
