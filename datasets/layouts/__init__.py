"""Where the files of each data set lie, and what its classes are."""
