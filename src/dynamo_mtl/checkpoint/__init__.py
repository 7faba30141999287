"""What lies in a checkpoint's folder, and how others read it: tensors, metadata, PEFT adapters, the card, the hub."""
