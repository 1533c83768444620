/**
 * The driver: one socket to a coffee-rt server, kept open, and the subscriptions on it.
 *
 * It reconnects with jittered backoff, waits as long as a draining server asks, takes five seconds of silence
 * for a dead connection, and subscribes again with what each subscription already knows. Clock, socket and
 * chance are given from outside, so that tests own them; in a browser `createLiveClient` brings the real ones.
 */

import { backoffMs, RECONNECT, UNWELCOME } from "./backoff.ts";
import { type ClientMessage, CloseCode, decodeMessage, type ServerMessage } from "./messages.ts";
import { ServerClock } from "./server-clock.ts";
import {
  type OrdersOptions,
  OrdersSubscription,
  type Subscription,
  type ViewOptions,
  ViewSubscription,
} from "./subscription.ts";

export interface Socket {
  send(text: string): void;
  close(): void;
}

export interface SocketEvents {
  onOpen(): void;
  onText(text: string): void;
  onClose(code: number, reason: string): void;
}

export interface Clock {
  /** Unix ms. */
  now(): number;
  /** Call once after so many ms; returns how to prevent it. */
  after(ms: number, call: () => void): () => void;
}

export interface LiveClientOptions {
  readonly open: (events: SocketEvents) => Socket;
  readonly clock: Clock;
  readonly random: () => number;
  /** API key to say hello with, asked for at each connect; null where the server wants none. */
  readonly token?: () => string | null;
}

/**
 * connecting: no welcome yet. live: following. waiting: will try again at `retryAtMs`. unauthorized: the server
 * wants an API key (another one); nothing is tried until `connect()`. stopped: not started, or stopped.
 */
export interface Status {
  readonly phase: "stopped" | "connecting" | "live" | "waiting" | "unauthorized";
  /** Failed attempts in a row. */
  readonly attempt: number;
  /** Local Unix ms. */
  readonly retryAtMs: number | null;
  /** Why the last connection ended, for people. */
  readonly reason: string;
  /** Live, but the server itself has not heard from the database for a while. */
  readonly isStale: boolean;
}

/** Age of the server's newest word from the database above which numbers are called stale. */
export const NEWS_MS_MAX = 10_000;

const SILENCE_MS_MAX = 5_000;
/** For the first answer: a proxy may have to wake a server first. */
const WELCOME_MS_MAX = 10_000;

const nothing = (): void => undefined;

export class LiveClient {
  status: Status = { phase: "stopped", attempt: 0, retryAtMs: null, reason: "", isStale: false };
  readonly #options: LiveClientOptions;
  readonly #serverClock = new ServerClock();
  readonly #subscriptions = new Set<Subscription>();
  readonly #statusListeners = new Set<() => void>();
  #following = new Map<number, Subscription>();
  #socket: Socket | null = null;
  /** Events of sockets of an earlier connection are dropped. */
  #connection = 0;
  #lastId = 0;
  #heardAtMs = 0;
  #silenceMsMax = WELCOME_MS_MAX;
  #drainMs: number | null = null;
  /** What the server said of the connection itself, before closing it. */
  #complaint = "";
  #cancelSilence = nothing;
  #cancelRetry = nothing;

  constructor(options: LiveClientOptions) {
    this.#options = options;
  }

  /** Connect now, also where a retry or a key is being waited for. */
  connect(): void {
    this.#drop();
    const connection = this.#connection;
    const isCurrent = () => connection === this.#connection;
    this.#setStatus({ phase: "connecting", retryAtMs: null });
    this.#silenceMsMax = WELCOME_MS_MAX;
    this.#heardAtMs = this.#options.clock.now();
    this.#watchSilence();
    this.#socket = this.#options.open({
      onOpen: () => isCurrent() && this.#sayHello(),
      onText: (text) => isCurrent() && this.#hear(text),
      onClose: (code, reason) => isCurrent() && this.#lose(code, reason),
    });
  }

  stop(): void {
    this.#drop();
    this.#setStatus({ phase: "stopped", attempt: 0, retryAtMs: null, reason: "" });
  }

  /** Follow a view. It starts with the next welcome where there is no connection now. */
  followView(view: string, options?: ViewOptions): ViewSubscription {
    return this.#follow(new ViewSubscription(view, options));
  }

  /** Follow the newest orders. */
  followOrders(options?: OrdersOptions): OrdersSubscription {
    return this.#follow(new OrdersSubscription(options));
  }

  unfollow(subscription: Subscription): void {
    this.#subscriptions.delete(subscription);
    this.#leave(subscription);
  }

  /** The server's time now, in Unix ms. */
  serverNow(): number {
    return this.#options.clock.now() + this.#serverClock.offsetMs;
  }

  /** When anything was last heard, in local Unix ms. */
  get heardAtMs(): number {
    return this.#heardAtMs;
  }

  onStatus(listener: () => void): () => void {
    this.#statusListeners.add(listener);
    return () => this.#statusListeners.delete(listener);
  }

  #follow<S extends Subscription>(subscription: S): S {
    this.#subscriptions.add(subscription);
    if (this.status.phase === "live") this.#begin(subscription);
    return subscription;
  }

  /** Each beginning has its own number, so that frames of the one before are recognised and dropped. */
  #begin(subscription: Subscription): void {
    this.#lastId += 1;
    this.#following.set(this.#lastId, subscription);
    this.#send(subscription.begin(this.#lastId, this.serverNow()));
  }

  #leave(subscription: Subscription): void {
    for (const [id, known] of this.#following) {
      if (known !== subscription) continue;
      this.#following.delete(id);
      if (this.status.phase === "live") this.#send({ type: "unsubscribe", id });
    }
  }

  #sayHello(): void {
    const token = this.#options.token?.() ?? null;
    if (token !== null) this.#send({ type: "hello", token });
  }

  #send(message: ClientMessage): void {
    this.#socket?.send(JSON.stringify(message));
  }

  #hear(text: string): void {
    this.#heardAtMs = this.#options.clock.now();
    let message: ServerMessage | null;
    try {
      message = decodeMessage(text);
    } catch {
      this.#lose(0, "the server sent something that is not JSON");
      return;
    }
    if (message !== null) this.#dispatch(message);
  }

  #dispatch(message: ServerMessage): void {
    switch (message.type) {
      case "welcome":
        this.#welcome(message.server_ms, message.heartbeat_seconds);
        break;
      case "heartbeat":
        this.#serverClock.learn(message.at_ms, this.#heardAtMs);
        this.#judgeNews(message.news_ms ?? 0);
        break;
      case "drain":
        this.#drainMs = message.retry_after_ms;
        break;
      case "error":
        this.#refuse(message.id, message.code, message.detail);
        break;
      default:
        this.#deliver(message.id, message);
    }
  }

  #welcome(serverMs: number, heartbeatSeconds: number): void {
    this.#serverClock.forget();
    this.#serverClock.learn(serverMs, this.#heardAtMs);
    this.#silenceMsMax = Math.max(SILENCE_MS_MAX, heartbeatSeconds * 2_500);
    this.#watchSilence();
    this.#setStatus({ phase: "live", attempt: 0, reason: "", isStale: false });
    for (const subscription of this.#subscriptions) this.#begin(subscription);
  }

  #judgeNews(newsMs: number): void {
    const isStale = newsMs > NEWS_MS_MAX;
    if (isStale !== this.status.isStale) this.#setStatus({ isStale });
  }

  #deliver(id: number, message: ServerMessage): void {
    const subscription = this.#following.get(id);
    if (subscription?.accept(message) === "gap") this.#again(subscription);
  }

  #refuse(id: number | undefined, code: string, detail: string): void {
    if (id === undefined) this.#complaint = detail;
    const subscription = id === undefined ? undefined : this.#following.get(id);
    if (subscription === undefined) return;
    subscription.error = { code, detail };
    subscription.notify();
    this.#again(subscription);
  }

  /** Subscribe anew: after a first gap at once, after refusals and further gaps with backoff. */
  #again(subscription: Subscription): void {
    this.#leave(subscription);
    subscription.failures += 1;
    const connection = this.#connection;
    const isAtOnce = subscription.failures === 1 && subscription.error === null;
    const wait = isAtOnce ? 0 : backoffMs(subscription.failures, RECONNECT, this.#options.random);
    this.#options.clock.after(wait, () => {
      const isWanted = this.#subscriptions.has(subscription) && connection === this.#connection;
      if (isWanted && ![...this.#following.values()].includes(subscription)) {
        this.#begin(subscription);
      }
    });
  }

  #lose(code: number, reason: string): void {
    const attempt = this.status.attempt + 1;
    const drainMs = this.#drainMs;
    const why = this.#complaint || reason;
    this.#drop();
    if (code === CloseCode.UNAUTHORIZED || code === CloseCode.POLICY) {
      this.#setStatus({ phase: "unauthorized", attempt, retryAtMs: null, reason: why });
      return;
    }
    const limits = code === CloseCode.TOO_MANY ? UNWELCOME : RECONNECT;
    const wait = drainMs ?? backoffMs(attempt, limits, this.#options.random);
    const retryAtMs = this.#options.clock.now() + wait;
    this.#setStatus({ phase: "waiting", attempt, retryAtMs, reason: why });
    this.#cancelRetry = this.#options.clock.after(wait, () => this.connect());
  }

  /** End the connection and every timer of it, without waiting for the other side. */
  #drop(): void {
    this.#connection += 1;
    this.#cancelSilence();
    this.#cancelRetry();
    this.#following = new Map();
    // The server encodes once for all sessions that use the same number for the same wish.
    this.#lastId = 0;
    this.#drainMs = null;
    this.#complaint = "";
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  #watchSilence(): void {
    this.#cancelSilence();
    const left = this.#heardAtMs + this.#silenceMsMax - this.#options.clock.now();
    if (left <= 0) {
      this.#lose(0, "the server has gone silent");
      return;
    }
    this.#cancelSilence = this.#options.clock.after(left, () => this.#watchSilence());
  }

  #setStatus(change: Partial<Status>): void {
    this.status = { ...this.status, ...change };
    for (const listener of this.#statusListeners) listener();
  }
}
