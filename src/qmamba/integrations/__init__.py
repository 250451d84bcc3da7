"""Ways into other programs."""
