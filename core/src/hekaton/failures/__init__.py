"""Failures of one of several processes: the first cause reaches all, and is what each machine says."""
