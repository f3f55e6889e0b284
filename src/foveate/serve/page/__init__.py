"""A page to try pruning on: `foveate demo --page`; needs the extra `demo`."""
