import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { createViewState, type Row, type ViewState } from "../client/index.ts";
import { computeFigures, dayStart, type Sources } from "./figures.ts";
import { formatAge, formatMoney, minorOf, plainMoney } from "./format.ts";
import { OTHERS, stackHeights, stackStores } from "./hours.ts";
import { hashFor, storeOf } from "./place.ts";

const NOW_MS = Date.UTC(2026, 10, 21, 21, 30, 15);
const DAY = dayStart(NOW_MS);

function view(columns: string[], rows: Row[]): ViewState {
  const state = createViewState();
  state.phase = "current";
  state.columns = columns;
  state.rows = new Map(rows.map((row) => [row.join(), row]));
  return state;
}

/** [hour, store, drink, orders, quantity, revenue, newest_at_ms] */
function sources(sales: readonly Row[], minutes: readonly Row[] = []): Sources {
  const hourly = ["bucket", "store", "drink", "orders", "quantity", "revenue", "newest_at_ms"];
  const minutely = ["bucket", "store", "orders", "revenue", "newest_at_ms"];
  return {
    hourly: view(
      hourly,
      sales.map((sale) => sale.with(0, DAY + Number(sale[0]) * 3600)),
    ),
    minutely: view(minutely, [...minutes]),
    ticker: [],
  };
}

describe("the figures", () => {
  test("sum today, and leave yesterday and emptied groups out", () => {
    const figures = computeFigures(
      sources([
        [-1, "uptown", "latte", 9, 9, 9000, 1],
        [0, "uptown", "latte", 2, 3, 1350, 5],
        [21, "central", "mocha", 1, 1, 510, 7],
        [21, "central", "latte", 0, 0, 0, 9],
      ]),
      null,
      NOW_MS,
    );
    expect(figures.today).toEqual({ orders: 3, quantity: 4, revenue: 1860 });
    expect(figures.drinks.map((drink) => drink.name)).toEqual(["latte", "mocha"]);
    expect(figures.newestAtMs).toBe(7);
  });

  test("follow the store filter but keep the list of stores", () => {
    const figures = computeFigures(
      sources([
        [8, "uptown", "latte", 2, 3, 1350, 5],
        [9, "central", "mocha", 1, 1, 510, 7],
      ]),
      "uptown",
      NOW_MS,
    );
    expect(figures.today.revenue).toBe(1350);
    expect(figures.stores).toEqual(["central", "uptown"]);
    expect(figures.storeHours.map((store) => store.name)).toEqual(["uptown"]);
    expect(figures.storeHours[0]?.revenueByHour[8]).toBe(1350);
  });

  test("place minutes in the last hour, the one under way last", () => {
    const minute = Math.floor(NOW_MS / 60_000) * 60;
    const { minutes } = computeFigures(
      sources(
        [],
        [
          [minute, "uptown", 1, 450, 1],
          [minute, "central", 2, 900, 1],
          [minute - 59 * 60, "uptown", 3, 100, 1],
          [minute - 60 * 60, "uptown", 9, 9900, 1],
          [minute + 60, "uptown", 9, 9900, 1],
        ],
      ),
      null,
      NOW_MS,
    );
    expect(minutes.starts.at(-1)).toBe(minute);
    expect(minutes.orders.at(-1)).toBe(3);
    expect(minutes.orders[0]).toBe(3);
    expect(minutes.revenue.reduce((sum, value) => sum + value)).toBe(1450);
  });
});

describe("stacked hours", () => {
  const sale = (store: string, revenue: number): Row => [8, store, "latte", 1, 1, revenue, 1];

  test("give each large store a colour and sum the others; nothing is lost", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 99 }), { maxLength: 12 }), (revenues) => {
        const sales = revenues.map((revenue, at) => sale(`store ${at}`, revenue));
        const { storeHours, today } = computeFigures(sources(sales), null, NOW_MS);
        const stacks = stackStores(storeHours, new Map());
        expect(new Set(stacks.map((stack) => stack.colour)).size).toBe(stacks.length);
        expect(stackHeights(stacks)[0]?.[8] ?? 0).toBe(today.revenue);
        expect(stacks.some((stack) => stack.name === OTHERS)).toBe(revenues.length > 6);
      }),
    );
  });

  test("a store keeps its colour when ranks change", () => {
    const slots = new Map<string, number>();
    const colours = (sales: Row[]) => {
      const { storeHours } = computeFigures(sources(sales), null, NOW_MS);
      return new Map(stackStores(storeHours, slots).map((stack) => [stack.name, stack.colour]));
    };
    const before = colours([sale("a", 3), sale("b", 2)]);
    const after = colours([sale("a", 3), sale("b", 9), sale("c", 5)]);
    expect(after.get("a")).toBe(before.get("a"));
    expect(after.get("b")).toBe(before.get("b"));
    expect(new Set(after.values()).size).toBe(3);
  });
});

describe("formats", () => {
  test("money is exact at any size and any decimals", () => {
    expect(formatMoney(123_456, 2)).toBe("1,234.56");
    expect(formatMoney(5, 2)).toBe("0.05");
    expect(formatMoney(-5, 2)).toBe("-0.05");
    expect(formatMoney(1200, 0)).toBe("1,200");
    expect(formatMoney(9_007_199_254_740_991, 2)).toBe("90,071,992,547,409.91");
    fc.assert(
      fc.property(fc.nat(1e9), fc.integer({ min: 0, max: 4 }), (minor, decimals) => {
        expect(minorOf(plainMoney(minor, decimals), decimals)).toBe(minor);
      }),
    );
  });

  test("ages are milliseconds while they mean something", () => {
    expect([842.4, 9_999, 10_000, 119_000, 125_000, 8_000_000, -3].map(formatAge)).toEqual([
      "842 ms",
      "9,999 ms",
      "10 s",
      "119 s",
      "2 min",
      "2 h",
      "0 ms",
    ]);
  });

  test("the store filter survives the address", () => {
    expect(storeOf(hashFor("Zoë's & co #1"))).toBe("Zoë's & co #1");
    expect(hashFor(null)).toBe("");
    expect(storeOf("")).toBeNull();
  });
});
