"""Bytes on disk: folders and their lock, manifests and checksums, files read as plain data."""
