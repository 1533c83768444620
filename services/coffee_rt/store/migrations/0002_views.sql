-- Views: the catalogue, the lanes, the dead letters of folds. The tables of a view are made with the view.

-- Counts changes of the set of views. A commit that knows another number reloads the catalogue.
CREATE TABLE view_generation (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    generation bigint NOT NULL
);
INSERT INTO view_generation (generation) VALUES (0);

CREATE TABLE view_catalogue (
    internal text PRIMARY KEY,
    name text NOT NULL,
    -- json, not jsonb: the order of its measures is the order of their columns.
    definition json NOT NULL,
    -- Generation it was made in: the first part of its epoch.
    generation bigint NOT NULL,
    feature_level integer NOT NULL,
    -- False for a replacement that is still being filled.
    is_current boolean NOT NULL,
    -- Unix seconds: buckets before it hold their history; null when all do.
    backfilled_to bigint,
    created_at timestamptz NOT NULL DEFAULT now()
);
-- Readers look a view up by its public name: one of it is current.
CREATE UNIQUE INDEX view_catalogue_current ON view_catalogue (name) WHERE is_current;

-- A lane's row is its version and, locked, its exclusion. Few rows, updated by every fold: room for
-- heap-only updates on the page, and vacuumed early.
CREATE TABLE view_lanes (
    internal text NOT NULL REFERENCES view_catalogue ON DELETE CASCADE,
    lane smallint NOT NULL,
    version bigint NOT NULL DEFAULT 0,
    -- Every delta of a transaction below it has been folded.
    floor xid8 NOT NULL DEFAULT '0',
    PRIMARY KEY (internal, lane)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- Deltas that no fold can take (overflow, a key too long), with everything needed to apply them by hand.
CREATE TABLE fold_dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    internal text NOT NULL,
    lane smallint NOT NULL,
    delta jsonb NOT NULL,
    code text NOT NULL,
    detail text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Lane of a group; domain.views.lane_of computes the same.
CREATE FUNCTION view_lane(key text, lanes integer) RETURNS smallint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ((('x' || substr(md5(key), 1, 8))::bit(32)::bigint) % lanes)::smallint;

-- An attribute as a dimension; domain.views.dimension_value computes the same.
CREATE FUNCTION view_attribute(attributes jsonb, name text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN jsonb_typeof(attributes -> name) = 'string'
                 AND octet_length(attributes ->> name) <= 128
           THEN attributes ->> name ELSE '' END;

-- What the epochs of all views share: a restored cluster or a promoted standby makes new ones. On a
-- standby the current timeline is that of the last checkpoint it replayed.
CREATE FUNCTION view_epoch_suffix() RETURNS text
    LANGUAGE sql STABLE
    RETURN '.' || (SELECT system_identifier FROM pg_control_system()) || '.' || CASE
        WHEN pg_is_in_recovery() THEN (SELECT timeline_id::bigint FROM pg_control_checkpoint())
        ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint END;
