"""The embedded model that is to come: scenes to read, long answers, its training."""
