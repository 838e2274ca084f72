"""What a model says of given texts, and how it continues them, on one process or on the layout of a run."""
