"""Methods that find a program for a diffusion pipeline, one file each."""
