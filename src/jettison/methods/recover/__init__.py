"""Recovery of what compression lost: a method, a file."""
