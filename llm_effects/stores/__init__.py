"""Where things are kept, behind the Protocols of the environment."""
