"""From a benchmark's items to a finished folder of rows and scores."""
