"""The command line: parse and print, nothing else.

Verbs import what prints (rich, `cli.show`) when they are called: `luthier --help` costs little more than typer itself.
"""
