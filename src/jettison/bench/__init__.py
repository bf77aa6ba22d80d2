"""Measure the speed of operators and decoding, and of the same work in other programs."""
