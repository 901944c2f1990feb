"""The life of a version: gates, promotion, rollback, archive, collection."""
