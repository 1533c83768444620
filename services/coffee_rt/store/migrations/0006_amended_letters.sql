-- What somebody made of a dead letter, beside the bytes it came with: the record that a redrive sends in their
-- place, when it was made and by which API key. The release before neither reads nor writes these.
ALTER TABLE dead_letters ADD COLUMN amended bytea;
ALTER TABLE dead_letters ADD COLUMN amended_at timestamptz;
ALTER TABLE dead_letters ADD COLUMN amended_by text;
