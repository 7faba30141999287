"""Run a trained model: the Python API, routing and decoding."""
