"""Export a trained model for other programs: as an ONNX graph, or as a plain model of one task."""
