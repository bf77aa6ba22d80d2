"""Models in GGUF files: the container, its tensors by the names of transformers, the config and the tokenizer."""
