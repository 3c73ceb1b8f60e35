"""`python -m vggt_int8`: the same as the `vggt-int8` command."""

from vggt_int8.cli import main

if __name__ == "__main__":
    main()
