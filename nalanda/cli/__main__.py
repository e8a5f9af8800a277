"""`python -m nalanda.cli` is `nalanda`."""

from nalanda.cli import main

main()
