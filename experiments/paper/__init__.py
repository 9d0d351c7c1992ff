"""The numbers of papers and logs that ours stand beside."""
