"""From scores to metrics: target ranks with ties, among all items or sampled ones."""
