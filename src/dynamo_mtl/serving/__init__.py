"""Serve a model over HTTP: one engine that runs it, and a web application. Needs the extra ``serve``."""
