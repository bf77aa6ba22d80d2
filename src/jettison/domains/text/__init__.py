"""Language models: texts, token windows, synthetic text, scores and tasks."""
