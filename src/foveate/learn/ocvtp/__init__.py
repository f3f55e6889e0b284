"""Training of OC-VTP's slots."""
