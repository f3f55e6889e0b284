"""What pruning would gain, from a model's config and a machine's rates (experimental: it may still change)."""
