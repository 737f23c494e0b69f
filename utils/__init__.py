"""What the commands share: configuration, training tools, metrics, reports, files, processes."""
