"""State as tensors, in a step and back: written, read, compared, staged in the memory of the host."""
