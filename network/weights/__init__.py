"""Weights from files and from the web, and how they fit a network."""
