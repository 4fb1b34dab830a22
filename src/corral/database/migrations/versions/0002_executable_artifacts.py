"""A program that a task built stays executable when it is fetched, and when a later task takes it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("artifacts", sa.Column("executable", sa.Boolean(), server_default=sa.false(), nullable=False))
