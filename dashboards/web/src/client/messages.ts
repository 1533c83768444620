/**
 * Messages of the WebSocket protocol of coffee-rt (docs/protocol.md), as TypeScript types.
 *
 * Everything is JSON in text frames. Money is an integer of minor units; `decimals` says how many of its
 * digits are decimals. Instants ending in `_ms` are Unix milliseconds, `since` and buckets Unix seconds.
 */

export type Cell = string | number;
/** One group of a view: cells in the order of the snapshot's `columns`. */
export type Row = readonly Cell[];
/** Dimension -> accepted values. */
export type Filter = Readonly<Record<string, readonly string[]>>;

export interface Resume {
  readonly epoch: string;
  /** Newest version known of each lane. */
  readonly versions: readonly number[];
}

export interface Order {
  readonly order_id: string;
  readonly store: string;
  readonly drink: string;
  /** Unit price, an exact decimal such as "4.50". */
  readonly price: string;
  readonly quantity: number;
  readonly ordered_at_ms: number;
  readonly accepted_at_ms: number;
}

export type ClientMessage =
  | { readonly type: "hello"; readonly token: string }
  | {
      readonly type: "subscribe";
      readonly id: number;
      readonly channel: string;
      readonly filter?: Filter;
      readonly since?: number;
      readonly resume?: Resume;
    }
  | { readonly type: "unsubscribe"; readonly id: number };

export interface Snapshot {
  readonly type: "snapshot";
  readonly id: number;
  readonly channel: string;
  readonly epoch: string;
  readonly versions: readonly number[];
  readonly columns: readonly string[];
  readonly money: readonly string[];
  readonly decimals: number;
  readonly rows: readonly Row[];
  readonly part: number;
  readonly parts: number;
}

export interface Delta {
  readonly type: "delta";
  readonly id: number;
  /** [lane, version, previous]: `previous` is the version this session was last told for the lane. */
  readonly lanes: readonly (readonly [number, number, number])[];
  readonly rows: readonly Row[];
  readonly newest_at_ms?: number;
}

export interface Versions {
  readonly type: "versions";
  readonly id: number;
  readonly versions: readonly number[];
}

export interface Reset {
  readonly type: "reset";
  readonly id: number;
  readonly reason: string;
}

export type ViewMessage = Snapshot | Delta | Versions | Reset;

export interface OrdersMessage {
  readonly type: "orders";
  readonly id: number;
  /** Newest first. */
  readonly orders: readonly Order[];
}

export type ServerMessage =
  | ViewMessage
  | OrdersMessage
  | {
      readonly type: "welcome";
      readonly session: string;
      readonly heartbeat_seconds: number;
      readonly server_ms: number;
    }
  | { readonly type: "heartbeat"; readonly at_ms: number; readonly news_ms?: number }
  | { readonly type: "drain"; readonly retry_after_ms: number }
  | {
      readonly type: "error";
      readonly id?: number;
      readonly code: string;
      readonly detail: string;
    };

const KNOWN: ReadonlySet<string> = new Set([
  "snapshot",
  "delta",
  "versions",
  "reset",
  "orders",
  "welcome",
  "heartbeat",
  "drain",
  "error",
]);

/** A message, or null for a type this client does not know (a newer server may send some). Throws on no JSON. */
export function decodeMessage(text: string): ServerMessage | null {
  const message: unknown = JSON.parse(text);
  if (typeof message !== "object" || message === null || !("type" in message)) return null;
  return KNOWN.has(String(message.type)) ? (message as ServerMessage) : null;
}

/** Close codes the server gives a meaning to. */
export const CloseCode = {
  DRAIN: 1012,
  POLICY: 1008,
  BAD_MESSAGE: 4400,
  UNAUTHORIZED: 4401,
  TOO_MANY: 4429,
} as const;
