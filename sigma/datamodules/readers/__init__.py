"""One small file per source: raw file -> Interactions, in the order of the file."""
