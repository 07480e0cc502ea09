"""Which model is asked: pure ranking, prices and statistics."""
