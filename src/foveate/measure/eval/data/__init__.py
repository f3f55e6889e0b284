"""Questions of one's own: rows of a file, read one at a time, as questions about images and videos."""
