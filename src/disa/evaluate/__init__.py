"""How good sets of images are: distances to a reference in named feature spaces, and what is read in the images."""
