"""The routed model. Knows no task, data file or optimizer; start at ``dynamo.py``."""
