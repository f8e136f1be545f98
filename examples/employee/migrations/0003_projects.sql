-- The project that an employee works on, as the project service last said; null before its first word.
ALTER TABLE employee ADD COLUMN project_id integer;
