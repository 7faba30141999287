"""Reads and writes checkpoints and shares them: tensors, metadata, PEFT adapters, the model card, the hub."""
