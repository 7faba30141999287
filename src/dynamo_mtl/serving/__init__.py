"""Answers over HTTP: one engine that runs the model, and the application around it. Needs the extra ``serve``."""
