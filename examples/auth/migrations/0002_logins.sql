ALTER TABLE account
    ADD COLUMN last_login_at timestamptz,
    ADD COLUMN logins        bigint NOT NULL DEFAULT 0 CHECK (logins >= 0);
