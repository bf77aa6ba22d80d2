"""Language: texts, token windows, text that a model writes, tasks."""
