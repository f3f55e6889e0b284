"""The OpenAI-compatible server: `foveate serve`; needs the extra `serve`."""
