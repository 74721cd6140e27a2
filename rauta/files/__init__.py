"""Configuration files: reading them, what is wrong with them, and what is published about them."""
