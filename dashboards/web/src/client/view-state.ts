/**
 * What a client knows of one view: rows by group, and the version of each lane.
 *
 * Server messages enter, in the order they arrived; a verdict leaves. Rows are absolute values with a version,
 * so a message twice or late does no harm, and within an epoch no row ever goes back. A gap in a lane's
 * versions changes nothing here: the verdict says so, and the owner subscribes again with `resumeOf(state)`.
 * No clock, no I/O. The state belongs to its creator and is changed in place; `revision` rises with each change.
 */

import type { Delta, Resume, Row, Snapshot, ViewMessage } from "./messages.ts";

export interface ViewState {
  phase: "empty" | "current" | "reset";
  epoch: string;
  versions: number[];
  columns: readonly string[];
  /** Names of the columns that hold minor units. */
  money: readonly string[];
  decimals: number;
  rows: Map<string, Row>;
  revision: number;
  /** Parts of a snapshot that is still arriving. */
  pending: PendingSnapshot | null;
}

interface PendingSnapshot {
  head: Snapshot;
  partsSeen: number;
  rows: Map<string, Row>;
  versions: number[];
}

/** applied: something changed. unchanged: nothing new. gap: messages are missing, subscribe again. */
export type Verdict = "applied" | "unchanged" | "gap";

export function createViewState(): ViewState {
  return {
    phase: "empty",
    epoch: "",
    versions: [],
    columns: [],
    money: [],
    decimals: 2,
    rows: new Map(),
    revision: 0,
    pending: null,
  };
}

/** What to send as `resume`; undefined where only a whole snapshot will do. */
export function resumeOf(state: ViewState): Resume | undefined {
  if (state.phase !== "current") return undefined;
  return { epoch: state.epoch, versions: [...state.versions] };
}

export function applyToView(state: ViewState, message: ViewMessage): Verdict {
  switch (message.type) {
    case "snapshot":
      return applySnapshot(state, message);
    case "delta":
      return applyDelta(state, message);
    case "versions":
      return applyVersions(state, message.versions);
    case "reset":
      // The old rows stay readable until the snapshot that follows is complete.
      state.phase = "reset";
      state.pending = null;
      state.revision += 1;
      return "applied";
  }
}

/** Forget an unfinished snapshot: its remaining parts went down with their connection. */
export function abandonPending(state: ViewState): void {
  state.pending = null;
}

/** Drop rows of buckets before an instant (Unix seconds). True when there were any. */
export function pruneBefore(state: ViewState, sinceSeconds: number): boolean {
  const bucket = state.columns.indexOf("bucket");
  const before = state.rows.size;
  for (const [key, row] of state.rows) {
    if (Number(row[bucket]) < sinceSeconds) state.rows.delete(key);
  }
  if (state.rows.size !== before) state.revision += 1;
  return state.rows.size !== before;
}

/** Names of the columns that are dimensions. Their cells are texts, all other cells are numbers. */
export function dimensionsOf(state: ViewState): string[] {
  const [row] = state.rows.values();
  return row === undefined ? [] : state.columns.filter((_, at) => typeof row[at] === "string");
}

function applySnapshot(state: ViewState, snapshot: Snapshot): Verdict {
  if (snapshot.part === 1) {
    const versions = [...snapshot.versions];
    state.pending = { head: snapshot, partsSeen: 0, rows: new Map(), versions };
  }
  const pending = state.pending;
  if (pending === null || snapshot.part !== pending.partsSeen + 1) return "gap";
  pending.partsSeen += 1;
  mergeRows(pending.rows, snapshot.rows, snapshot.columns);
  if (pending.partsSeen < snapshot.parts) return "unchanged";
  adopt(state, pending);
  return "applied";
}

function adopt(state: ViewState, pending: PendingSnapshot): void {
  const { head } = pending;
  const isContinuation =
    state.phase === "current" &&
    state.epoch === head.epoch &&
    state.versions.length === head.versions.length;
  if (isContinuation) keepNewerLanes(state, pending);
  state.phase = "current";
  state.epoch = head.epoch;
  state.versions = pending.versions;
  state.columns = head.columns;
  state.money = head.money;
  state.decimals = head.decimals;
  state.rows = pending.rows;
  state.pending = null;
  state.revision += 1;
}

/** A snapshot of the same epoch may come from a server that is behind: lanes known newer are kept. */
function keepNewerLanes(state: ViewState, pending: PendingSnapshot): void {
  const lane = state.columns.indexOf("lane");
  for (const [key, row] of state.rows) {
    const at = Number(row[lane]);
    if ((state.versions[at] ?? 0) > (pending.versions[at] ?? 0)) {
      mergeRow(pending.rows, key, row, state.columns.indexOf("version"));
    }
  }
  pending.versions = pending.versions.map((version, at) =>
    Math.max(version, state.versions[at] ?? 0),
  );
}

function applyDelta(state: ViewState, delta: Delta): Verdict {
  const target = state.pending ?? (state.phase === "current" ? state : null);
  // Between a reset and its snapshot nothing can be placed; the snapshot will contain it.
  if (target === null) return "unchanged";
  if (delta.lanes.some(([lane, , previous]) => previous > (target.versions[lane] ?? 0))) {
    return "gap";
  }
  const columns = state.pending?.head.columns ?? state.columns;
  let isNew = mergeRows(target.rows, delta.rows, columns);
  for (const [lane, version] of delta.lanes) {
    if (version > (target.versions[lane] ?? 0)) {
      target.versions[lane] = version;
      isNew = true;
    }
  }
  if (isNew) state.revision += 1;
  return isNew ? "applied" : "unchanged";
}

function applyVersions(state: ViewState, versions: readonly number[]): Verdict {
  const target = state.pending ?? (state.phase === "current" ? state : null);
  if (target === null) return "unchanged";
  let isNew = false;
  for (const [lane, version] of versions.entries()) {
    if (version > (target.versions[lane] ?? 0)) {
      target.versions[lane] = version;
      isNew = true;
    }
  }
  // No rows changed, so nobody needs to draw: `revision` stays.
  return isNew ? "applied" : "unchanged";
}

function mergeRows(
  rows: Map<string, Row>,
  news: readonly Row[],
  columns: readonly string[],
): boolean {
  const bucket = columns.indexOf("bucket");
  const version = columns.indexOf("version");
  let isNew = false;
  for (const row of news) {
    if (mergeRow(rows, groupKey(row, bucket), row, version)) isNew = true;
  }
  return isNew;
}

function mergeRow(rows: Map<string, Row>, key: string, row: Row, version: number): boolean {
  const known = rows.get(key);
  if (known !== undefined && Number(known[version]) >= Number(row[version])) return false;
  rows.set(key, row);
  return true;
}

function groupKey(row: Row, bucket: number): string {
  let key = String(row[bucket]);
  for (const cell of row) if (typeof cell === "string") key += `\u001f${cell}`;
  return key;
}
