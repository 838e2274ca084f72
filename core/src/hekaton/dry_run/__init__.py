"""A dry run: one step as one of many ranks, in one process on fake tensors; and a layout in words."""
