"""The steps from one form of the tables to the next, run by Alembic; `migrate` asks for them."""

REVISION = "0005"  # the newest step; the tables of `manybeam.db.tables` are those after it
TABLE = "manybeam_revision"  # has the last step of a database
