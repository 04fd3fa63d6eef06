"""Weights from elsewhere: reading, renaming, and the list of released models."""
