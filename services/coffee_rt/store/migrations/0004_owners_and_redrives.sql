-- Who a view belongs to: 'file' (the aggregators' folder of definitions), 'object:<namespace>/<name>' (a
-- MetricView), or 'kept' (nobody: its object was deleted and its rows were to stay).
ALTER TABLE view_catalogue ADD COLUMN owner text NOT NULL DEFAULT 'file';
-- Which orders the view takes. Not inside `definition`: the release before refuses names it does not know,
-- and a reader of that release needs none of this. Its workers stop at the feature level.
ALTER TABLE view_catalogue ADD COLUMN filter json;
-- Filled once before: readers keep the view while the days that a longer retention adds are filled.
ALTER TABLE view_catalogue ADD COLUMN is_refill boolean NOT NULL DEFAULT false;

-- The newest redrive that tried a dead letter and what came of it. With redriven_at the record is accounted
-- for elsewhere (stored, or a duplicate), and the letter is only a trace.
ALTER TABLE dead_letters ADD COLUMN redrive text;
ALTER TABLE dead_letters ADD COLUMN outcome text;
ALTER TABLE dead_letters ADD COLUMN redriven_at timestamptz;

-- Query: what a redrive did so far.
CREATE INDEX dead_letters_redrive ON dead_letters (redrive, outcome) WHERE redrive IS NOT NULL;
