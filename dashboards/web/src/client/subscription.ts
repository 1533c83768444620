/**
 * A wish to follow a channel, and what is known of it so far.
 *
 * It outlives connections: the client subscribes it again on each one, resuming where it was. `state` is only
 * changed by the client, between two calls of the listeners.
 */

import type {
  ClientMessage,
  Filter,
  OrdersMessage,
  ServerMessage,
  ViewMessage,
} from "./messages.ts";
import { applyOrders, createOrdersState } from "./orders-state.ts";
import { abandonPending, applyToView, createViewState, resumeOf } from "./view-state.ts";

export type Outcome = "fine" | "gap";

export interface SubscriptionError {
  readonly code: string;
  readonly detail: string;
}

/** Gaps in a row after which resuming is given up and a whole snapshot is asked for. */
const RESUMES_MAX = 3;

abstract class ChannelSubscription {
  /** Why the server refused it; null while it does not. */
  error: SubscriptionError | null = null;
  /** Refusals and gaps since it last worked. */
  failures = 0;
  readonly channel: string;
  protected readonly filter: Filter | undefined;
  readonly #listeners = new Set<() => void>();

  constructor(channel: string, filter: Filter | undefined) {
    this.channel = channel;
    this.filter = filter;
  }

  /** Call `listener` after each change; returns how to stop that. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  notify(): void {
    for (const listener of this.#listeners) listener();
  }

  /** The frame that starts following under a number. */
  abstract begin(id: number, serverNowMs: number): ClientMessage;
  abstract accept(message: ServerMessage): Outcome;
}

export interface ViewOptions {
  /** Only rows whose dimensions have one of these values. */
  readonly filter?: Filter;
  /** First bucket wanted, in Unix seconds, asked for at each (re)connect. */
  readonly since?: (serverNowMs: number) => number;
}

export class ViewSubscription extends ChannelSubscription {
  readonly state = createViewState();
  readonly #since: ((serverNowMs: number) => number) | undefined;

  constructor(view: string, options: ViewOptions = {}) {
    super(`view:${view}`, options.filter);
    this.#since = options.since;
  }

  begin(id: number, serverNowMs: number): ClientMessage {
    abandonPending(this.state);
    const resume = this.failures > RESUMES_MAX ? undefined : resumeOf(this.state);
    return {
      type: "subscribe",
      id,
      channel: this.channel,
      ...(this.filter && { filter: this.filter }),
      ...(this.#since && { since: this.#since(serverNowMs) }),
      ...(resume && { resume }),
    };
  }

  accept(message: ServerMessage): Outcome {
    const verdict = applyToView(this.state, message as ViewMessage);
    if (verdict === "gap") return "gap";
    this.failures = 0;
    this.error = null;
    if (verdict === "applied") this.notify();
    return "fine";
  }
}

export interface OrdersOptions {
  readonly filter?: Filter;
  /** How many orders to keep. */
  readonly limit?: number;
}

export class OrdersSubscription extends ChannelSubscription {
  readonly state;
  #isFirst = true;

  constructor(options: OrdersOptions = {}) {
    super("orders", options.filter);
    this.state = createOrdersState(options.limit);
  }

  begin(id: number): ClientMessage {
    this.#isFirst = true;
    return {
      type: "subscribe",
      id,
      channel: this.channel,
      ...(this.filter && { filter: this.filter }),
    };
  }

  accept(message: ServerMessage): Outcome {
    applyOrders(this.state, (message as OrdersMessage).orders, this.#isFirst);
    this.#isFirst = false;
    this.failures = 0;
    this.error = null;
    this.notify();
    return "fine";
  }
}

export type Subscription = ViewSubscription | OrdersSubscription;
