"""Image and label files, decoded and checked; caches of what was decoded."""
