/** Client of coffee-rt's live updates: see README.md. */

export { createLiveClient } from "./browser.ts";
export {
  type Clock,
  LiveClient,
  type LiveClientOptions,
  type Socket,
  type SocketEvents,
  type Status,
} from "./live-client.ts";
export * from "./messages.ts";
export { applyOrders, createOrdersState, type OrdersState } from "./orders-state.ts";
export {
  type OrdersOptions,
  OrdersSubscription,
  type Subscription,
  type SubscriptionError,
  type ViewOptions,
  ViewSubscription,
} from "./subscription.ts";
export {
  abandonPending,
  applyToView,
  createViewState,
  dimensionsOf,
  pruneBefore,
  resumeOf,
  type Verdict,
  type ViewState,
} from "./view-state.ts";
