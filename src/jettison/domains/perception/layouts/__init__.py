"""Readers of the folder layouts of public driving datasets. A file each; ``opening`` finds the one that fits."""
