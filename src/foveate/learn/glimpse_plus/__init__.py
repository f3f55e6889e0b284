"""GlimpsePrune+ (experimental): what is in here may still change."""
