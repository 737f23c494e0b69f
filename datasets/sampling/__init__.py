"""Which samples an epoch holds, in which order."""
