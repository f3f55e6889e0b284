"""GlimpsePrune."""
