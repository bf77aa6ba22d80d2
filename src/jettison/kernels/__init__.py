"""The only door to fast code: operators, each with its PyTorch reference."""
