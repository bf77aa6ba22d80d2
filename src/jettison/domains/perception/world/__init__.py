"""A synthetic driving world: streets, cars and weather, rendered by ray casting, with labels that agree."""
