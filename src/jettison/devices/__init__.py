"""Devices: their figures, how this machine's figures are measured, and the cost of a model on a device (roofline)."""
