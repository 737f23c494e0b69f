"""Inference at many scales: flip, averaging, tiles, and maps computed strip by strip."""
