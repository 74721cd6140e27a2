"""Connections that move, through everything that a network can do to their packets."""
