"""A page and an address on this machine where trained models answer about images."""
