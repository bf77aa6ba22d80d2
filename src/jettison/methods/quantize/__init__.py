"""Methods of weight quantization, one file each. Weights that are zero stay zero."""
