"""The protocols that models speak: each a record of pure functions; each preset a row of data."""
