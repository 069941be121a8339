"""`python -m dnnmem`."""

from dnnmem.cli.app import main

if __name__ == "__main__":
    main()
