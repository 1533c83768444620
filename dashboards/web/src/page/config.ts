/** Which views the page shows, and what their columns mean to it. Another shop's page changes only this. */

export const VIEWS = {
  /** Today: by hour, store and drink. */
  hourly: "hourly",
  /** The last hour: by minute and store. */
  minutely: "minutely",
} as const;

export const COLUMNS = {
  store: "store",
  drink: "drink",
  orders: "orders",
  quantity: "quantity",
  revenue: "revenue",
} as const;

export const MINUTES_SHOWN = 60;
export const DRINKS_SHOWN = 8;
/** Stores with a colour of their own; the others are drawn together. */
export const STORES_COLOURED = 6;
export const ORDERS_SHOWN = 30;
/** Draw at most this often: an order after a pause is drawn at once, and phones stay cool under many. */
export const DRAW_MS_MIN = 200;
/** A connection that is back within this time needs no banner. */
export const BANNER_AFTER_MS = 1_500;
