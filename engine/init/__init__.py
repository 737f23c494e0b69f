"""`hmsa init`: from a folder of images and masks to a class list and a configuration."""
