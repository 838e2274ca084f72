"""Files that are read from where they lie, over a network, while a run trains on them."""
