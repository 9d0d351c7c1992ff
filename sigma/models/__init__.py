"""One paper per file: item ids and lengths in, hidden states out."""
