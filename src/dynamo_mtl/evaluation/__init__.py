"""Measuring a trained model: result files, tables and the routing analyzer."""
