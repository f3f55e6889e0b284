"""GlimpsePrune+."""
