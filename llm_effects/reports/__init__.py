"""Usage reports and their exports."""
