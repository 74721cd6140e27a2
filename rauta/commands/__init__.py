"""What the commands of `rauta` do, a module for each; rauta.cli says which there are, and imports what is asked for.

A command is a function whose parameters typer reads. Its docstring is its help. It prints with rich, which it imports
itself, so that a daemon never does; it raises RautaError, and typer.Exit with a code of rauta.cli.ExitCode.
"""
