"""What the package costs and saves, measured. Results go to docs/results, and from there into the docs."""
