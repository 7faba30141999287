"""The phases of training, one module each."""
