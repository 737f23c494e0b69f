"""Pages and pictures that tell what a run found."""
