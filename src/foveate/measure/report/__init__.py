"""Results of `foveate eval` as a page, figures and tables, and two of them side by side."""
