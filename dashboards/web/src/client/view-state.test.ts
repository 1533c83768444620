import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Delta, Row, Snapshot } from "./messages.ts";
import { applyToView, createViewState, dimensionsOf, pruneBefore, resumeOf } from "./view-state.ts";

const LANES = 3;
const STORES = ["uptown", "downtown", "central", "southend"];

/** A server with one view and one session on it, as docs/protocol.md has them. */
class ModelServer {
  epoch = 1;
  versions = new Array<number>(LANES).fill(0);
  rows = new Map<string, Row>();
  told = new Array<number>(LANES).fill(0);

  fold(lane: number, store: number, revenue: number): void {
    const version = (this.versions[lane] ?? 0) + 1;
    this.versions[lane] = version;
    const key = `${lane}-${store}`;
    this.rows.set(key, [3600, `${STORES[store]}-${lane}`, revenue, lane, version, version]);
  }

  snapshot(parts: number): Snapshot[] {
    this.told = [...this.versions];
    const rows = [...this.rows.values()];
    const size = Math.max(1, Math.ceil(rows.length / parts));
    return Array.from({ length: parts }, (_, at) => ({
      type: "snapshot",
      id: 1,
      channel: "view:hourly",
      epoch: String(this.epoch),
      versions: [...this.versions],
      columns: ["bucket", "store", "revenue", "lane", "version", "newest_at_ms"],
      money: ["revenue"],
      decimals: 2,
      rows: rows.slice(at * size, (at + 1) * size),
      part: at + 1,
      parts,
    }));
  }

  /** Everything above what the session was told (or resumes from), conflated into one frame. */
  delta(from: readonly number[] = this.told): Delta {
    const lanes = this.versions
      .map((version, lane) => [lane, version, from[lane] ?? 0] as const)
      .filter(([, version, previous]) => version > previous);
    const rows = [...this.rows.values()].filter(
      (row) => Number(row[4]) > (from[Number(row[3])] ?? 0),
    );
    this.told = [...this.versions];
    return { type: "delta", id: 1, lanes, rows };
  }

  restore(): void {
    this.epoch += 1;
    this.versions = this.versions.map((version) => version >> 1);
    this.rows = new Map([...this.rows].filter((_, at) => at % 2 === 0));
    this.rows.forEach((row, key) => {
      this.rows.set(key, row.with(4, Math.min(Number(row[4]), this.versions[Number(row[3])] ?? 0)));
    });
  }
}

const step = fc.oneof(
  fc.record({
    do: fc.constant("fold" as const),
    lane: fc.nat(LANES - 1),
    store: fc.nat(STORES.length - 1),
    revenue: fc.nat(10_000),
  }),
  fc.record({ do: fc.constantFrom("delta", "lost", "again", "resume", "restore") }),
  fc.record({ do: fc.constant("snapshot" as const), parts: fc.integer({ min: 1, max: 3 }) }),
);

describe("a view's state", () => {
  test("converges to the server's rows whatever is lost, doubled, late or restored", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const server = new ModelServer();
        const state = createViewState();
        let sent: Delta[] = [];
        const receive = (frame: Delta) => {
          sent.push(frame);
          if (applyToView(state, frame) === "gap") resume();
        };
        const snapshot = (parts: number) => {
          for (const part of server.snapshot(parts)) applyToView(state, part);
        };
        const resume = () => {
          const known = resumeOf(state);
          if (known?.epoch === String(server.epoch)) receive(server.delta(known.versions));
          else snapshot(1);
        };
        snapshot(1);
        for (const item of steps) {
          const before = {
            epoch: state.epoch,
            versions: [...state.versions],
            rows: new Map(state.rows),
          };
          if ("lane" in item) server.fold(item.lane, item.store, item.revenue);
          else if ("parts" in item) snapshot(item.parts);
          else if (item.do === "delta") receive(server.delta());
          else if (item.do === "lost") server.delta();
          else if (item.do === "again") for (const frame of sent) applyToView(state, frame);
          else if (item.do === "resume") resume();
          else {
            server.restore();
            applyToView(state, { type: "reset", id: 1, reason: "epoch" });
            sent = [];
            snapshot(2);
          }
          if (before.epoch !== state.epoch) continue;
          before.versions.forEach((version, lane) => {
            expect(state.versions[lane]).toBeGreaterThanOrEqual(version);
          });
          for (const [key, row] of before.rows) {
            expect(Number(state.rows.get(key)?.[4])).toBeGreaterThanOrEqual(Number(row[4]));
          }
        }
        resume();
        expect(new Set(state.rows.values())).toEqual(new Set(server.rows.values()));
        expect(state.versions).toEqual(server.versions);
      }),
      { numRuns: 300 },
    );
  });

  test("announces a gap and keeps its rows as they were", () => {
    const server = new ModelServer();
    const state = createViewState();
    for (const part of server.snapshot(1)) applyToView(state, part);
    server.fold(0, 0, 100);
    server.delta();
    server.fold(0, 1, 200);
    const revision = state.revision;
    expect(applyToView(state, server.delta())).toBe("gap");
    expect(state.revision).toBe(revision);
    expect(resumeOf(state)).toEqual({ epoch: "1", versions: [0, 0, 0] });
  });

  test("advances versions without rows, so that a filtered session sees no gap", () => {
    const server = new ModelServer();
    const state = createViewState();
    for (const part of server.snapshot(1)) applyToView(state, part);
    server.fold(1, 0, 100);
    applyToView(state, { type: "versions", id: 1, versions: [...server.versions] });
    server.told = [...server.versions];
    server.fold(1, 2, 300);
    expect(applyToView(state, server.delta())).toBe("applied");
  });

  test("takes a delta between the parts of a snapshot", () => {
    const server = new ModelServer();
    for (let store = 0; store < 4; store += 1) server.fold(0, store, 100);
    const state = createViewState();
    const [first, second] = server.snapshot(2);
    if (first) applyToView(state, first);
    server.fold(0, 3, 500);
    applyToView(state, server.delta());
    if (second) applyToView(state, second);
    expect(new Set(state.rows.values())).toEqual(new Set(server.rows.values()));
  });

  test("keeps the rows readable after a reset until the new snapshot is whole", () => {
    const server = new ModelServer();
    for (let store = 0; store < 4; store += 1) server.fold(store % LANES, store, 100);
    const state = createViewState();
    for (const part of server.snapshot(1)) applyToView(state, part);
    server.restore();
    applyToView(state, { type: "reset", id: 1, reason: "epoch" });
    expect(resumeOf(state)).toBeUndefined();
    const [first, second] = server.snapshot(2);
    if (first) applyToView(state, first);
    expect(state.rows.size).toBe(4);
    if (second) applyToView(state, second);
    expect(new Set(state.rows.values())).toEqual(new Set(server.rows.values()));
  });

  test("names the dimensions and forgets old buckets", () => {
    const server = new ModelServer();
    server.fold(0, 0, 100);
    const state = createViewState();
    for (const part of server.snapshot(1)) applyToView(state, part);
    expect(dimensionsOf(state)).toEqual(["store"]);
    expect(pruneBefore(state, 3600)).toBe(false);
    expect(pruneBefore(state, 7200)).toBe(true);
    expect(state.rows.size).toBe(0);
  });
});
