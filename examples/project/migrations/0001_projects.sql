CREATE TABLE project (
    id         integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name       text    NOT NULL UNIQUE,
    head_count integer NOT NULL DEFAULT 0 CHECK (head_count >= 0)
);

-- An employee works on one project at a time.
CREATE TABLE assignment (
    employee_id uuid        PRIMARY KEY,
    project_id  integer     NOT NULL REFERENCES project,
    since       timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX assignment_project ON assignment (project_id);
