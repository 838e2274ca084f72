"""What ``import hekaton`` offers: training, loading and building models, and what runs left on disk."""
