"""What the router does with a request, and why: its decisions once more, in Python."""
