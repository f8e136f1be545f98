"""Makes a database that a test has used as good as new, in a fifth of the time that making and dropping one takes."""

from __future__ import annotations

import psycopg

SWEEP = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
    SET client_min_messages = error;
    DROP SCHEMA public CASCADE;
    CREATE SCHEMA public;
    -- As in a new database, which since PostgreSQL 15 lets nobody create anything.
    DO $$ BEGIN
        IF current_setting('server_version_num')::int < 150000 THEN
            GRANT ALL ON SCHEMA public TO public;
        ELSE
            ALTER SCHEMA public OWNER TO pg_database_owner;
            GRANT USAGE ON SCHEMA public TO public;
        END IF;
    END $$;
"""
# What was not there from the beginning has a number of 16384 or more.
LEFT = """
    SELECT 'relation' FROM pg_class WHERE oid >= 16384
    UNION ALL SELECT 'function' FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 'type' FROM pg_type WHERE oid >= 16384
    UNION ALL SELECT 'extension' FROM pg_extension WHERE oid >= 16384
    UNION ALL SELECT 'event trigger' FROM pg_event_trigger
    UNION ALL SELECT 'publication' FROM pg_publication
    UNION ALL SELECT 'large object' FROM pg_largeobject_metadata
    UNION ALL SELECT 'schema' FROM pg_namespace WHERE oid >= 16384 AND nspname !~ '^(public$|pg_)'
    UNION ALL SELECT 'setting' FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase
        WHERE datname = current_database()
"""


def left_after_sweeping(conninfo: str) -> set[str]:
    """Empty a database, and return what was not to be had out of it: with any of that it is not as new."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(SWEEP)
        return {row[0] for row in connection.execute(LEFT)}
