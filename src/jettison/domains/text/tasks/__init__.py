"""The bundled suite of tasks: questions that are made from public-domain text."""
