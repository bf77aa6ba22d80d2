"""Weight quantization: a method, a file. Weights that are zero stay zero."""
