"""Fast operators on packed weights, each with its PyTorch reference. Other rooms call them through ``ops``."""
