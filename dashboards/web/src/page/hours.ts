/** Today's hours by store as stacked bars: who gets a colour of their own, and how high each bar reaches. */

import { STORES_COLOURED } from "./config.ts";
import type { StoreHours } from "./figures.ts";

export interface Stack {
  readonly name: string;
  /** Name of the colour in tokens.css. */
  readonly colour: string;
  readonly store: StoreHours;
}

export const OTHERS = "Other stores";

/**
 * The stores with the largest revenue, each in a colour, the others summed at the end. `slots` remembers who has
 * which colour, so that a store keeps its own while ranks change.
 */
export function stackStores(stores: readonly StoreHours[], slots: Map<string, number>): Stack[] {
  const top = stores.slice(0, STORES_COLOURED);
  const names = new Set(top.map((store) => store.name));
  const stacks = top.map((store) => ({
    name: store.name,
    colour: `store-${slotOf(store.name, names, slots)}`,
    store,
  }));
  const others = stores.slice(STORES_COLOURED);
  if (others.length > 0) {
    stacks.push({ name: OTHERS, colour: "store-other", store: sumStores(others) });
  }
  return stacks;
}

function slotOf(name: string, shown: ReadonlySet<string>, slots: Map<string, number>): number {
  const known = slots.get(name);
  if (known !== undefined) return known;
  const used = new Set([...slots].filter(([other]) => shown.has(other)).map(([, slot]) => slot));
  for (let slot = 1; slot <= STORES_COLOURED; slot += 1) {
    if (used.has(slot)) continue;
    for (const [other, taken] of slots) if (taken === slot) slots.delete(other);
    slots.set(name, slot);
    return slot;
  }
  return STORES_COLOURED;
}

function sumStores(stores: readonly StoreHours[]): StoreHours {
  const sum = (pick: (store: StoreHours) => number) =>
    stores.reduce((total, store) => total + pick(store), 0);
  const hours = Array.from({ length: 24 }, (_, hour) => hour);
  return {
    name: OTHERS,
    orders: sum((store) => store.orders),
    quantity: sum((store) => store.quantity),
    revenue: sum((store) => store.revenue),
    revenueByHour: hours.map((hour) => sum((store) => store.revenueByHour[hour] ?? 0)),
    ordersByHour: hours.map((hour) => sum((store) => store.ordersByHour[hour] ?? 0)),
  };
}

/** Heights to draw: each series the sum up to itself, the tallest first, so that later ones cover its foot. */
export function stackHeights(stacks: readonly Stack[]): number[][] {
  const sums = new Array<number>(24).fill(0);
  const heights = stacks.map(({ store }) =>
    store.revenueByHour.map((revenue, hour) => {
      sums[hour] = (sums[hour] ?? 0) + revenue;
      return sums[hour];
    }),
  );
  return heights.reverse();
}
