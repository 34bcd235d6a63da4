"""The page: drop a radiograph and read, type a report and draw, look at the codes in between."""
