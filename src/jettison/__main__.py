"""Entry point of ``python -m jettison`` and of ``accelerate launch -m jettison``."""

from jettison.cli.app import main

if __name__ == "__main__":
    main()
