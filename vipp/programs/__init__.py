"""Programs that are drawn from and scored, and programs made of others."""
