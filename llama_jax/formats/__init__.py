"""Models in files: read from, and written in, the formats of other frameworks and our own."""
