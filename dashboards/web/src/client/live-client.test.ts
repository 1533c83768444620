import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { backoffMs, RECONNECT } from "./backoff.ts";
import { type Clock, LiveClient, type Socket, type SocketEvents } from "./live-client.ts";
import type { Order } from "./messages.ts";
import { applyOrders, createOrdersState } from "./orders-state.ts";
import { ServerClock } from "./server-clock.ts";

class ManualClock implements Clock {
  nowMs = 1_000_000;
  #timers = new Map<number, { atMs: number; call: () => void }>();
  #last = 0;

  now = () => this.nowMs;

  after(ms: number, call: () => void): () => void {
    const id = ++this.#last;
    this.#timers.set(id, { atMs: this.nowMs + ms, call });
    return () => this.#timers.delete(id);
  }

  advance(ms: number): void {
    const end = this.nowMs + ms;
    for (;;) {
      const due = [...this.#timers]
        .filter(([, timer]) => timer.atMs <= end)
        .sort(([, a], [, b]) => a.atMs - b.atMs)[0];
      if (due === undefined) break;
      const [id, timer] = due;
      this.#timers.delete(id);
      this.nowMs = Math.max(this.nowMs, timer.atMs);
      timer.call();
    }
    this.nowMs = end;
  }
}

interface Sent {
  type: string;
  id: number;
  channel: string;
  token: string;
  resume?: { epoch: string; versions: number[] };
}

class FakeSocket implements Socket {
  sent: Sent[] = [];
  isClosed = false;
  readonly events: SocketEvents;
  constructor(events: SocketEvents) {
    this.events = events;
  }
  send(text: string): void {
    this.sent.push(JSON.parse(text) as Sent);
  }
  close(): void {
    this.isClosed = true;
  }
  say(message: object): void {
    this.events.onText(JSON.stringify(message));
  }
  welcome(): void {
    this.events.onOpen();
    this.say({ type: "welcome", session: "s", heartbeat_seconds: 2, server_ms: 2_000_000 });
  }
  subscribes(): Sent[] {
    return this.sent.filter((message) => message.type === "subscribe");
  }
}

function start(token: string | null = null) {
  const clock = new ManualClock();
  const sockets: FakeSocket[] = [];
  const client = new LiveClient({
    clock,
    random: () => 0.5,
    token: () => token,
    open(events) {
      const socket = new FakeSocket(events);
      sockets.push(socket);
      return socket;
    },
  });
  const last = (): FakeSocket => {
    const socket = sockets.at(-1);
    if (socket === undefined) throw new Error("no socket was opened");
    return socket;
  };
  return { clock, sockets, client, last };
}

const snapshot = (id: number, versions: number[], rows: unknown[] = []) => ({
  type: "snapshot",
  id,
  channel: "view:hourly",
  epoch: "1.7.1",
  versions,
  columns: ["bucket", "store", "orders", "lane", "version", "newest_at_ms"],
  money: [],
  decimals: 2,
  rows,
  part: 1,
  parts: 1,
});

describe("the live client", () => {
  test("subscribes after the welcome and again, with what it knows, after a lost connection", () => {
    const { clock, client, last } = start();
    const view = client.followView("hourly", { since: () => 3600 });
    client.connect();
    expect(last().sent).toEqual([]);
    last().welcome();
    expect(last().sent).toEqual([
      { type: "subscribe", id: 1, channel: "view:hourly", since: 3600 },
    ]);
    last().say(snapshot(1, [4, 9], [[3600, "uptown", 3, 0, 4, 5]]));
    last().events.onClose(1006, "");
    expect(client.status).toMatchObject({ phase: "waiting", attempt: 1 });
    expect(view.state.rows.size).toBe(1);
    clock.advance(RECONNECT.firstMs);
    last().welcome();
    expect(last().sent[0]?.id).toBe(1);
    expect(last().sent[0]?.resume).toEqual({ epoch: "1.7.1", versions: [4, 9] });
    last().say({ type: "delta", id: 1, lanes: [[0, 6, 4]], rows: [[3600, "uptown", 5, 0, 6, 7]] });
    expect([...view.state.rows.values()]).toEqual([[3600, "uptown", 5, 0, 6, 7]]);
  });

  test("subscribes with resume when messages are missing and drops frames of the number before", () => {
    const { clock, client, last } = start();
    const view = client.followView("hourly");
    client.connect();
    last().welcome();
    last().say(snapshot(1, [4]));
    last().say({ type: "delta", id: 1, lanes: [[0, 7, 6]], rows: [[0, "uptown", 9, 0, 7, 1]] });
    clock.advance(0);
    expect(last().sent.slice(1)).toEqual([
      { type: "unsubscribe", id: 1 },
      {
        type: "subscribe",
        id: 2,
        channel: "view:hourly",
        resume: { epoch: "1.7.1", versions: [4] },
      },
    ]);
    last().say({ type: "delta", id: 1, lanes: [[0, 8, 7]], rows: [[0, "uptown", 10, 0, 8, 1]] });
    expect(view.state.versions).toEqual([4]);
  });

  test("asks for a whole snapshot when gap follows gap, ever more slowly", () => {
    const { clock, client, last } = start();
    client.followView("hourly");
    client.connect();
    last().welcome();
    last().say(snapshot(1, [4]));
    for (let round = 0; round < 5; round += 1) {
      const id = last().subscribes().at(-1)?.id;
      last().say({ type: "delta", id, lanes: [[0, 90, 80]], rows: [] });
      clock.advance(4_000);
      last().say({ type: "heartbeat", at_ms: 2_000_000 });
    }
    expect(last().subscribes()).toHaveLength(6);
    expect(last().subscribes()[2]?.resume).toBeDefined();
    expect(last().subscribes()[5]?.resume).toBeUndefined();
  });

  test("calls its numbers stale while the server has no news of the database", () => {
    const { client, last } = start();
    client.connect();
    last().welcome();
    last().say({ type: "heartbeat", at_ms: 2_002_000, news_ms: 9_000 });
    expect(client.status.isStale).toBe(false);
    last().say({ type: "heartbeat", at_ms: 2_004_000, news_ms: 11_000 });
    expect(client.status).toMatchObject({ phase: "live", isStale: true });
    last().say({ type: "heartbeat", at_ms: 2_006_000, news_ms: 400 });
    expect(client.status.isStale).toBe(false);
  });

  test("takes five seconds of silence for a dead connection", () => {
    const { clock, client, last, sockets } = start();
    client.connect();
    last().welcome();
    clock.advance(4_900);
    last().say({ type: "heartbeat", at_ms: 2_004_900 });
    clock.advance(4_900);
    expect(client.status.phase).toBe("live");
    clock.advance(200);
    expect(client.status).toMatchObject({ phase: "waiting", reason: "the server has gone silent" });
    expect(sockets[0]?.isClosed).toBe(true);
    sockets[0]?.say(snapshot(1, [1]));
    sockets[0]?.events.onClose(1006, "late");
    expect(client.status.attempt).toBe(1);
  });

  test("waits as long as a draining server asks", () => {
    const { clock, client, last, sockets } = start();
    client.connect();
    last().welcome();
    last().say({ type: "drain", retry_after_ms: 1234 });
    last().events.onClose(1012, "drain");
    clock.advance(1_233);
    expect(sockets).toHaveLength(1);
    clock.advance(1);
    expect(sockets).toHaveLength(2);
  });

  test("says hello first and stops trying when the key is refused", () => {
    const { clock, client, last, sockets } = start("crt_a_b");
    client.connect();
    last().events.onOpen();
    expect(last().sent).toEqual([{ type: "hello", token: "crt_a_b" }]);
    last().say({ type: "error", code: "unknown-key", detail: "no such key" });
    last().events.onClose(1008, "unknown-key");
    expect(client.status).toMatchObject({ phase: "unauthorized", reason: "no such key" });
    clock.advance(600_000);
    expect(sockets).toHaveLength(1);
    client.connect();
    expect(sockets).toHaveLength(2);
  });

  test("keeps asking, with backoff, for a channel the server refuses", () => {
    const { clock, client, last } = start();
    const view = client.followView("nonesuch");
    client.connect();
    last().welcome();
    last().say({ type: "error", id: 1, code: "unknown-view", detail: "no such view" });
    expect(view.error).toEqual({ code: "unknown-view", detail: "no such view" });
    clock.advance(1_000);
    last().say(snapshot(2, [1]));
    expect(view.error).toBeNull();
  });

  test("knows the server's clock and ignores what it does not know", () => {
    const { client, last, clock } = start();
    client.connect();
    last().welcome();
    last().say({ type: "from-the-future" });
    clock.advance(500);
    expect(client.serverNow()).toBe(2_000_500);
    last().events.onText("{not json");
    expect(client.status.phase).toBe("waiting");
  });

  test("stops for good, and follows nothing that was unfollowed", () => {
    const { clock, client, last, sockets } = start();
    const view = client.followView("hourly");
    client.connect();
    last().welcome();
    client.unfollow(view);
    expect(last().sent.at(-1)).toEqual({ type: "unsubscribe", id: 1 });
    last().say(snapshot(1, [1]));
    expect(view.state.phase).toBe("empty");
    client.stop();
    clock.advance(600_000);
    expect(sockets).toHaveLength(1);
    expect(client.status.phase).toBe("stopped");
  });

  test("is live again after any sequence of faults", () => {
    const fault = fc.constantFrom("close", "silence", "drain", "garbage", "wait");
    fc.assert(
      fc.property(fc.array(fault, { maxLength: 25 }), (faults) => {
        const { clock, client, last, sockets } = start();
        client.followView("hourly");
        client.connect();
        for (const what of faults) {
          if (client.status.phase === "connecting") last().welcome();
          if (what === "close") last().events.onClose(1006, "");
          else if (what === "silence") clock.advance(5_000);
          else if (what === "garbage") last().events.onText("<html>");
          else if (what === "drain") last().say({ type: "drain", retry_after_ms: 700 });
          else clock.advance(300);
        }
        clock.advance(20_000);
        while (client.status.phase === "waiting") clock.advance(1_000);
        if (client.status.phase === "connecting") last().welcome();
        expect(client.status).toMatchObject({ phase: "live", attempt: 0 });
        expect(last().subscribes()).toHaveLength(1);
        expect(sockets.filter((socket) => !socket.isClosed)).toHaveLength(1);
      }),
      { numRuns: 200 },
    );
  });
});

const order = (id: number, atMs: number): Order => ({
  order_id: String(id),
  store: "uptown",
  drink: "latte",
  price: "4.50",
  quantity: 1,
  ordered_at_ms: atMs,
  accepted_at_ms: atMs,
});

describe("the newest orders", () => {
  test("are each shown once, newest first, whatever order frames come in", () => {
    fc.assert(
      fc.property(fc.array(fc.array(fc.nat(99), { maxLength: 8 }), { maxLength: 12 }), (frames) => {
        const state = createOrdersState(10);
        for (const frame of frames) {
          applyOrders(
            state,
            frame.map((at) => order(at, at)),
            false,
          );
        }
        const all = [...new Set(frames.flat())].sort((a, b) => b - a);
        expect(state.orders.map((known) => known.accepted_at_ms)).toEqual(all.slice(0, 10));
      }),
    );
  });

  test("a first frame replaces what it contradicts and keeps what is newer", () => {
    const state = createOrdersState();
    applyOrders(state, [order(9, 900), order(5, 500)], true);
    applyOrders(state, [order(8, 800)], true);
    expect(state.orders.map((known) => known.order_id)).toEqual(["9", "8"]);
    applyOrders(state, [], true);
    expect(state.orders).toEqual([]);
  });
});

test("backoff grows to its limit and stays within the jitter", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 500 }),
      fc.double({ min: 0, max: 0.999, noNaN: true }),
      (n, chance) => {
        const wait = backoffMs(n, RECONNECT, () => chance);
        expect(wait).toBeGreaterThanOrEqual(RECONNECT.firstMs / 2);
        expect(wait).toBeLessThanOrEqual(RECONNECT.longestMs);
      },
    ),
  );
});

test("the server's clock is read from the message that travelled fastest", () => {
  const clock = new ServerClock();
  clock.learn(1_000, 400);
  clock.learn(2_000, 1_450);
  clock.learn(3_000, 2_399);
  expect(clock.offsetMs).toBe(601);
});
