"""What was derived, and whether it is right."""
