"""Training of the embedded model; what only answers never imports it."""
