/**
 * The newest orders a client has seen, newest first, each once, at most `limit`.
 *
 * A sample, not a log: the server leaves orders out under load. Totals come from views.
 */

import type { Order } from "./messages.ts";

export interface OrdersState {
  readonly limit: number;
  orders: readonly Order[];
  revision: number;
}

export function createOrdersState(limit = 50): OrdersState {
  return { limit, orders: [], revision: 0 };
}

/**
 * Take in a frame. The first one of a subscription is the truth about the past: of what was known before,
 * only orders newer than all of it stay (the server asked now may be a moment behind the one asked before).
 */
export function applyOrders(state: OrdersState, orders: readonly Order[], isFirst: boolean): void {
  const newest = Math.max(0, ...orders.map((order) => order.accepted_at_ms));
  const kept = isFirst
    ? state.orders.filter((order) => order.accepted_at_ms > newest && orders.length > 0)
    : state.orders;
  const byId = new Map([...kept, ...orders].map((order) => [order.order_id, order]));
  state.orders = [...byId.values()].sort(byNewest).slice(0, state.limit);
  state.revision += 1;
}

function byNewest(left: Order, right: Order): number {
  const age = right.accepted_at_ms - left.accepted_at_ms;
  return age !== 0 ? age : right.order_id < left.order_id ? -1 : 1;
}
