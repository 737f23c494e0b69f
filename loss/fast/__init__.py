"""Kernels behind the losses: the same numbers in less time and memory, with their own gradients.

All of them work through the logits in blocks of rows, which stay in the processor's cache, and keep
no map of the size of the logits for the backward pass; what they need there is computed again.
"""
