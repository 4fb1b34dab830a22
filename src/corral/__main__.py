"""``python -m corral`` is the command ``corral``."""

from corral.entry import main

main()
