"""Hard labels from confidences: thresholds, the folder of labels, its manifest, submissions."""
