"""The HTTP transport beneath the model clients."""
