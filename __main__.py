"""`python -m bstune`: the command line."""

from .cli import main

main(prog_name="bstune")
