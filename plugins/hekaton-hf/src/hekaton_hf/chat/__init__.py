"""Conversations: rows of files, rendered by a chat template, with the loss on what the assistant says."""
