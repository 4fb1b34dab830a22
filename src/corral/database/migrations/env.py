"""Alembic's entry: run the migrations on the connection that ``corral.database.migrate`` hands over.

The transaction is the caller's, so a migration that fails leaves nothing behind.
"""

from alembic import context

from corral.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters tables by copying them
)
with context.begin_transaction():
    context.run_migrations()
