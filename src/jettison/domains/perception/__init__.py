"""The domain of perception: models for images, depth and sound."""
