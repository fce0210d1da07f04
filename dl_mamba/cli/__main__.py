"""`python -m dl_mamba.cli` is the command `dl-mamba`."""

from dl_mamba.cli import main

if __name__ == "__main__":
    main()
