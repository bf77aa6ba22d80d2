"""The bundled suite of tasks: questions made from public-domain text."""
