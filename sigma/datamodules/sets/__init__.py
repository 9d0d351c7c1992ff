"""One small class a data set."""
