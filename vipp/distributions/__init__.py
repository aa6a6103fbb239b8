"""What vipp adds to NumPyro's distributions."""
