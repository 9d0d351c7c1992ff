"""Everything about a run that is not its model: folder, row, name, checks, messages."""
