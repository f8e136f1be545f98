-- Money is in cents. A department's budget is what it may still give out, so that
-- sum(budget) + sum(salary) = sum(granted), whatever happens.
CREATE TABLE department (
    id         integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name       text    NOT NULL UNIQUE,
    granted    bigint  NOT NULL CHECK (granted >= 0),
    budget     bigint  NOT NULL CHECK (budget >= 0),
    head_count integer NOT NULL DEFAULT 0 CHECK (head_count >= 0)
);

CREATE TABLE employee (
    id            uuid    PRIMARY KEY,
    department_id integer NOT NULL REFERENCES department,
    name          text    NOT NULL,
    email         text    NOT NULL UNIQUE,
    iban          text    NOT NULL,
    salary        bigint  NOT NULL CHECK (salary > 0),
    starts_on     date    NOT NULL,
    ends_on       date    CHECK (ends_on >= starts_on)
);

CREATE INDEX employee_department ON employee (department_id);
