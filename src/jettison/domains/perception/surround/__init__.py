"""Cameras around a car: their ring, matches between neighbours, depth by triangulation, images carried to others."""
