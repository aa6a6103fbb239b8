"""Training a model and a guide by an objective."""
