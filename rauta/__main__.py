"""``python -m rauta``: the same as the command `rauta`."""

from rauta.cli import main

main()
