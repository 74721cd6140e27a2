"""`rauta run` and `rauta agent` as processes, what they leave on a host, and how rautactl asks them."""
