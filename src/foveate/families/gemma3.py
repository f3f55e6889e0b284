"""Gemma 3: SigLIP's patches averaged in squares; an image that is panned and scanned is followed by its crops.

The default finds all of it. A crop is an image of its own: between it and the others there is text. That the tokens of
an image see one another in both directions, and layers a window, is in the masks and caches that the model makes.
"""

from foveate.families.base import Family

GEMMA3 = Family("gemma3", "Gemma 3", "google/gemma-3-4b-it")
