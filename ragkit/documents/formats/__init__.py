"""The readers, one module per file format."""
