"""The database: one engine over SQLite and PostgreSQL, the whole schema on one page, and its migrations."""
