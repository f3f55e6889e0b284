"""The three laws, on a model that the user has."""
