"""The three phases and the one loop that runs them."""
