"""Speed, measured: operators, decoding, the same in other programs."""
