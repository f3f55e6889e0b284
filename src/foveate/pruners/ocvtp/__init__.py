"""OC-VTP."""
