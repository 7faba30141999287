"""A trained model for other programs: an ONNX graph, or one plain model a task."""
