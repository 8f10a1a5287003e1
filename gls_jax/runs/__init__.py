"""Long work: files written whole, resuming, many processes, tables of results."""
