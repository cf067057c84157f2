"""``python -m specgen_server``."""

from .cli import main

main()
