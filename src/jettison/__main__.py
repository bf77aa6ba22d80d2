"""``python -m jettison``, and through it ``accelerate launch -m jettison``."""

from jettison.cli.app import main

if __name__ == "__main__":
    main()
