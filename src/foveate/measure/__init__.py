"""Evaluation suites, tables and pictures of the kept tokens."""
