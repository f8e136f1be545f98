-- The caller chooses the id: a raise that is sent twice is given once.
CREATE TABLE raise (
    id          uuid        PRIMARY KEY,
    employee_id uuid        NOT NULL REFERENCES employee ON DELETE CASCADE,
    amount      bigint      NOT NULL CHECK (amount > 0),
    given_by    text        NOT NULL,
    given_at    timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX raise_employee ON raise (employee_id);
