"""Batches for training and evaluation, read by worker processes."""
