-- The caller chooses the id: a transfer that is sent twice is made once.
CREATE TABLE transfer (
    id          uuid        PRIMARY KEY,
    employee_id uuid        NOT NULL,
    source      integer     NOT NULL REFERENCES project,
    target      integer     NOT NULL REFERENCES project CHECK (target <> source),
    made_by     text        NOT NULL,
    made_at     timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX transfer_employee ON transfer (employee_id);
