"""`python -m coffee_rt`: the `coffee-rt` command without its script, e.g. from a bare checkout."""

from coffee_rt.cli import main

if __name__ == "__main__":
    main()
