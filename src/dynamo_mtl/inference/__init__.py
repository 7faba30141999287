"""The one way to run a model."""
