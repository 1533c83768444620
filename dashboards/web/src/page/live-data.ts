/**
 * What the page follows, and when it draws.
 *
 * Owns the live client. Changes are drawn together, at most every DRAW_MS_MIN and only while the page is
 * visible; a second's tick moves the window of the charts on when no order does.
 */

import { createLiveClient, type OrdersSubscription, pruneBefore } from "../client/index.ts";
import { DRAW_MS_MIN, ORDERS_SHOWN, VIEWS } from "./config.ts";
import { computeFigures, dayStart, type Figures, firstMinute } from "./figures.ts";
import { readToken } from "./token.ts";

const TICK_MS = 1_000;

export class LiveData {
  readonly client = createLiveClient(socketAddress(), { token: readToken });
  readonly #hourly = this.client.followView(VIEWS.hourly, { since: dayStart });
  readonly #minutely = this.client.followView(VIEWS.minutely, { since: firstMinute });
  #ticker: OrdersSubscription;
  #store: string | null;
  #isAsked = false;
  #drawnAt = 0;
  readonly #draw: () => void;

  constructor(store: string | null, draw: () => void) {
    this.#store = store;
    this.#draw = draw;
    this.#ticker = this.#followTicker();
    this.#hourly.onChange(() => this.askToDraw());
    this.#minutely.onChange(() => this.askToDraw());
    this.client.onStatus(() => this.askToDraw());
    setInterval(() => this.#tick(), TICK_MS);
    // A laptop that was asleep, or a phone that found its network again, need not wait for the backoff.
    window.addEventListener("online", () => this.#hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.#hurry());
    this.client.connect();
  }

  /** Views are filtered here, so that the list of stores stays whole; the ticker by the server. */
  filterBy(store: string | null): void {
    if (store === this.#store) return;
    this.#store = store;
    this.client.unfollow(this.#ticker);
    this.#ticker = this.#followTicker();
    this.askToDraw();
  }

  figures(): Figures {
    const sources = {
      hourly: this.#hourly.state,
      minutely: this.#minutely.state,
      ticker: this.#ticker.state.orders,
    };
    return computeFigures(sources, this.#store, this.client.serverNow());
  }

  /** What the server refuses us, in its words. One that has just started only needs a moment. */
  refusals(): string[] {
    return [this.#hourly, this.#minutely, this.#ticker].flatMap(({ channel, error }) =>
      error === null || error.code === "loading" ? [] : [`${channel}: ${error.detail}`],
    );
  }

  askToDraw(): void {
    if (this.#isAsked) return;
    this.#isAsked = true;
    const wait = Math.max(0, this.#drawnAt + DRAW_MS_MIN - performance.now());
    setTimeout(() => requestAnimationFrame(() => this.#drawNow()), wait);
  }

  #drawNow(): void {
    this.#isAsked = false;
    this.#drawnAt = performance.now();
    this.#draw();
  }

  #tick(): void {
    const now = this.client.serverNow();
    pruneBefore(this.#hourly.state, dayStart(now));
    pruneBefore(this.#minutely.state, firstMinute(now));
    this.askToDraw();
  }

  #hurry(): void {
    if (this.client.status.phase === "waiting") this.client.connect();
  }

  #followTicker(): OrdersSubscription {
    const filter = this.#store === null ? {} : { filter: { store: [this.#store] } };
    const ticker = this.client.followOrders({ limit: ORDERS_SHOWN, ...filter });
    ticker.onChange(() => this.askToDraw());
    return ticker;
  }
}

function socketAddress(): string {
  const address = new URL("/ws", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.hash = "";
  return address.href;
}
