"""SQL databases: connections, tables, driver errors."""
