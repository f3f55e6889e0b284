"""Evaluation suites, tables and images of the kept tokens."""
