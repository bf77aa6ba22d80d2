"""Private offloading: a part of a network runs on a machine that is not trusted, and noise bounds what it can learn.

Source: Privatar (arXiv:2604.17476).
"""
