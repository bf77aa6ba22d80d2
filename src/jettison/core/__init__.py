"""What every room uses: errors, files, locks, journals, progress, sizes. No neural network in here."""
