/**
 * From the states of the followed views to the figures on the page. Pure: rows, a filter and the time enter.
 *
 * Money stays an integer of minor units. All times are UTC, as the buckets are: "today" begins at 00:00 UTC.
 */

import type { Order, ViewState } from "../client/index.ts";
import { COLUMNS, DRINKS_SHOWN, MINUTES_SHOWN } from "./config.ts";

export interface Totals {
  orders: number;
  quantity: number;
  revenue: number;
}

export interface Named extends Totals {
  readonly name: string;
}

export interface StoreHours extends Named {
  /** Revenue and orders of each of the 24 hours. */
  readonly revenueByHour: number[];
  readonly ordersByHour: number[];
}

export interface Minutes {
  /** Starts in Unix seconds, the minute under way last. */
  readonly starts: number[];
  readonly orders: number[];
  readonly revenue: number[];
}

export interface Figures {
  /** Both views have been received at least once. */
  readonly isLoaded: boolean;
  readonly decimals: number;
  /** Every store seen, filtered out or not, by name. */
  readonly stores: readonly string[];
  readonly today: Totals;
  /** 00:00 UTC in Unix seconds. */
  readonly dayStart: number;
  /** By revenue, largest first. */
  readonly storeHours: readonly StoreHours[];
  readonly drinks: readonly Named[];
  readonly minutes: Minutes;
  readonly ticker: readonly Order[];
  /** Acceptance of the newest order inside, Unix ms; 0 where there is none. */
  readonly newestAtMs: number;
}

export interface Sources {
  readonly hourly: ViewState;
  readonly minutely: ViewState;
  readonly ticker: readonly Order[];
}

interface Sale extends Totals {
  bucket: number;
  store: string;
  drink: string;
  newestAtMs: number;
}

export const DAY_SECONDS = 86_400;

export function dayStart(nowMs: number): number {
  return Math.floor(nowMs / 1000 / DAY_SECONDS) * DAY_SECONDS;
}

export function firstMinute(nowMs: number): number {
  return (Math.floor(nowMs / 60_000) - MINUTES_SHOWN + 1) * 60;
}

export function computeFigures(sources: Sources, store: string | null, nowMs: number): Figures {
  const start = dayStart(nowMs);
  const today = readSales(sources.hourly).filter(
    (sale) => sale.bucket >= start && sale.bucket < start + DAY_SECONDS && sale.orders !== 0,
  );
  const recent = readSales(sources.minutely).filter((sale) => sale.orders !== 0);
  const stores = new Set([...today, ...recent].map((sale) => sale.store));
  if (store !== null) stores.add(store);
  const isShown = (sale: { store: string }) => store === null || sale.store === store;
  const shown = today.filter(isShown);
  const shownRecent = recent.filter(isShown);
  const ticker = sources.ticker.filter(isShown);
  return {
    isLoaded: sources.hourly.phase !== "empty" && sources.minutely.phase !== "empty",
    decimals: sources.hourly.decimals,
    stores: [...stores].sort((left, right) => left.localeCompare(right)),
    today: total(shown),
    dayStart: start,
    storeHours: computeStoreHours(shown, start),
    drinks: groupBy(shown, (sale) => sale.drink)
      .sort((left, right) => right.quantity - left.quantity || compareNames(left, right))
      .slice(0, DRINKS_SHOWN),
    minutes: computeMinutes(shownRecent, nowMs),
    ticker,
    newestAtMs: Math.max(
      0,
      ticker[0]?.accepted_at_ms ?? 0,
      ...[...shown, ...shownRecent].map((sale) => sale.newestAtMs),
    ),
  };
}

function readSales(state: ViewState): Sale[] {
  const at = (name: string) => state.columns.indexOf(name);
  const [bucket, newest] = [at("bucket"), at("newest_at_ms")];
  const [store, drink] = [at(COLUMNS.store), at(COLUMNS.drink)];
  const [orders, quantity, revenue] = [
    at(COLUMNS.orders),
    at(COLUMNS.quantity),
    at(COLUMNS.revenue),
  ];
  return Array.from(state.rows.values(), (row) => ({
    bucket: Number(row[bucket] ?? 0),
    store: String(row[store] ?? ""),
    drink: String(row[drink] ?? ""),
    orders: Number(row[orders] ?? 0),
    quantity: Number(row[quantity] ?? 0),
    revenue: Number(row[revenue] ?? 0),
    newestAtMs: Number(row[newest] ?? 0),
  }));
}

function add(sum: Totals, sale: Totals): void {
  sum.orders += sale.orders;
  sum.quantity += sale.quantity;
  sum.revenue += sale.revenue;
}

function total(sales: readonly Sale[]): Totals {
  const sum = { orders: 0, quantity: 0, revenue: 0 };
  for (const sale of sales) add(sum, sale);
  return sum;
}

function groupBy(sales: readonly Sale[], name: (sale: Sale) => string): Named[] {
  const groups = new Map<string, Named>();
  for (const sale of sales) {
    const key = name(sale);
    const group = groups.get(key) ?? { name: key, orders: 0, quantity: 0, revenue: 0 };
    add(group, sale);
    groups.set(key, group);
  }
  return [...groups.values()];
}

function compareNames(left: Named, right: Named): number {
  return left.name.localeCompare(right.name);
}

function computeStoreHours(sales: readonly Sale[], start: number): StoreHours[] {
  return groupBy(sales, (sale) => sale.store)
    .sort((left, right) => right.revenue - left.revenue || compareNames(left, right))
    .map((store) => {
      const revenueByHour = new Array<number>(24).fill(0);
      const ordersByHour = new Array<number>(24).fill(0);
      for (const sale of sales) {
        if (sale.store !== store.name) continue;
        const hour = Math.floor((sale.bucket - start) / 3600);
        revenueByHour[hour] = (revenueByHour[hour] ?? 0) + sale.revenue;
        ordersByHour[hour] = (ordersByHour[hour] ?? 0) + sale.orders;
      }
      return { ...store, revenueByHour, ordersByHour };
    });
}

function computeMinutes(sales: readonly Sale[], nowMs: number): Minutes {
  const first = firstMinute(nowMs);
  const starts = Array.from({ length: MINUTES_SHOWN }, (_, at) => first + at * 60);
  const orders = new Array<number>(MINUTES_SHOWN).fill(0);
  const revenue = new Array<number>(MINUTES_SHOWN).fill(0);
  for (const sale of sales) {
    const at = (sale.bucket - first) / 60;
    if (!(at in orders)) continue;
    orders[at] = (orders[at] ?? 0) + sale.orders;
    revenue[at] = (revenue[at] ?? 0) + sale.revenue;
  }
  return { starts, orders, revenue };
}
