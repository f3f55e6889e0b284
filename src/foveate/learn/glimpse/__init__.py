"""Training of GlimpsePrune's predictor."""
