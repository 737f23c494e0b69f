"""Pages and pictures that show what a run found."""
