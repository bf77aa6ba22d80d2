"""What every training shares: losses, and the parameters that are trained."""
