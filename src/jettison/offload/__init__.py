"""Privatar: a part of a network runs on a machine that is not trusted, and what leaves the device tells little."""
