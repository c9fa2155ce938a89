"""The verbs of `stem-local`, one file each; imported by `cli.py` when they are used."""
