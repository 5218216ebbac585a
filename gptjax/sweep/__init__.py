"""Settings x seeds, a row of results each."""
