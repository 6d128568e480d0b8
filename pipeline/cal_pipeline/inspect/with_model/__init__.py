"""with_model."""
