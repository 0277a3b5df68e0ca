"""`python -m quietstar.scaling`: the tables of docs/scaling.md."""

from quietstar.scaling.pages import tables

if __name__ == "__main__":
    print("\n\n".join(tables()))
