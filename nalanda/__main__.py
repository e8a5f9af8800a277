"""`python -m nalanda` is `nalanda`: what torchrun starts, `torchrun --nproc-per-node 8 -m nalanda train RECIPE`."""

from nalanda.cli import main

if __name__ == "__main__":
    main()
