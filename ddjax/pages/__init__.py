"""Everything that draws: HTML pages, their figures, and pictures of images."""
