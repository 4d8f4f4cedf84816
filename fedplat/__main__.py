"""`python -m fedplat`."""

from fedplat.cli import main

main()
