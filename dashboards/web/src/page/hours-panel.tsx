/** Today's revenue by hour and store: stacked bars, the stores' totals as legend, the table behind. */

import { useMemo, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { Chart, quietAxes, readingCursor, scaleFromZero } from "./chart.tsx";
import type { Figures } from "./figures.ts";
import { formatCompact, formatCount, formatMoney } from "./format.ts";
import { type Stack, stackHeights, stackStores } from "./hours.ts";

interface HoursPanelProps {
  readonly figures: Figures;
  readonly theme: string;
  readonly store: string | null;
  readonly onStore: (store: string | null) => void;
}

const HOURS = Array.from({ length: 24 }, (_, hour) => hour);

export function hourName(hour: number): string {
  return `${String(hour).padStart(2, "0")}:00`;
}

export function HoursPanel({ figures, theme, store, onStore }: HoursPanelProps) {
  const slots = useRef(new Map<string, number>());
  const [pointed, setPointed] = useState<number | null>(null);
  const { decimals, storeHours } = figures;
  const stacks = useMemo(() => stackStores(storeHours, slots.current), [storeHours]);
  const data = useMemo<uPlot.AlignedData>(() => [HOURS, ...stackHeights(stacks)], [stacks]);
  const revenueOf = (hour: number) =>
    stacks.reduce((sum, stack) => sum + (stack.store.revenueByHour[hour] ?? 0), 0);
  const best = HOURS.reduce((top, hour) => (revenueOf(hour) > revenueOf(top) ? hour : top), 0);
  const reading = (hour: number) => `${hourName(hour)} · ${formatMoney(revenueOf(hour), decimals)}`;
  return (
    <section class="panel hours" aria-labelledby="hours-title">
      <header class="panel-head">
        <h2 id="hours-title">Today by hour and store</h2>
        <p class="readout">{pointed === null ? `best ${reading(best)}` : reading(pointed)}</p>
      </header>
      <div class="hours-body">
        <Chart
          label={`Revenue of each hour of today by store, best hour ${reading(best)}. The table below has the values.`}
          height={316}
          data={data}
          signature={`${theme} ${decimals} ${stacks.map((stack) => stack.colour).join()}`}
          onPoint={setPointed}
          options={(colour) => ({
            legend: { show: false },
            cursor: readingCursor(),
            padding: [8, 8, 0, 0],
            scales: {
              x: { time: false, range: [-0.6, 23.6] },
              y: scaleFromZero(10 * 10 ** decimals),
            },
            axes: quietAxes(
              colour,
              {
                splits: (plot) => HOURS.filter((hour) => hour % (plot.width < 420 ? 6 : 3) === 0),
                values: (_, at) => at.map(hourName),
              },
              (value) => formatCompact(value / 10 ** decimals),
            ),
            series: [{}, ...[...stacks].reverse().map((stack) => bars(colour(stack.colour)))],
          })}
        />
        <StoreTotals stacks={stacks} decimals={decimals} store={store} onStore={onStore} />
      </div>
      <HoursTable stacks={stacks} decimals={decimals} />
    </section>
  );
}

function bars(fill: string): uPlot.Series {
  const paths = uPlot.paths.bars?.({ size: [0.7, 40], radius: 0.08 });
  return { fill, stroke: fill, width: 0, points: { show: false }, ...(paths && { paths }) };
}

interface StacksProps {
  readonly stacks: readonly Stack[];
  readonly decimals: number;
}

function StoreTotals({
  stacks,
  decimals,
  store,
  onStore,
}: StacksProps & Pick<HoursPanelProps, "store" | "onStore">) {
  return (
    <table class="totals">
      <caption class="unseen">Stores today</caption>
      <thead>
        <tr>
          <th scope="col">Store</th>
          <th scope="col" class="number">
            Orders
          </th>
          <th scope="col" class="number">
            Revenue
          </th>
        </tr>
      </thead>
      <tbody>
        {stacks.map((stack) => (
          <tr key={stack.name}>
            <th scope="row">
              <span class={`swatch ${stack.colour}`} aria-hidden="true" />
              {stack.colour === "store-other" ? (
                stack.name
              ) : (
                <button
                  type="button"
                  class="plain"
                  aria-pressed={store === stack.name}
                  title={store === stack.name ? "Show all stores" : `Show only ${stack.name}`}
                  onClick={() => onStore(store === stack.name ? null : stack.name)}
                >
                  {stack.name}
                </button>
              )}
            </th>
            <td class="number">{formatCount(stack.store.orders)}</td>
            <td class="number">{formatMoney(stack.store.revenue, decimals)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function HoursTable({ stacks, decimals }: StacksProps) {
  // One store alone is the sum already.
  const columns = stacks.length > 1 ? stacks : [];
  const sum = (hour: number, of: "revenueByHour" | "ordersByHour") =>
    stacks.reduce((total, stack) => total + (stack.store[of][hour] ?? 0), 0);
  return (
    <details class="behind">
      <summary>Values as a table</summary>
      <div class="scroll">
        <table>
          <caption class="unseen">Revenue of each hour of today by store</caption>
          <thead>
            <tr>
              <th scope="col">Hour (UTC)</th>
              {columns.map((stack) => (
                <th scope="col" class="number" key={stack.name}>
                  {stack.name}
                </th>
              ))}
              <th scope="col" class="number">
                Revenue
              </th>
              <th scope="col" class="number">
                Orders
              </th>
            </tr>
          </thead>
          <tbody>
            {HOURS.map((hour) => (
              <tr key={hour}>
                <th scope="row">{hourName(hour)}</th>
                {columns.map((stack) => (
                  <td class="number" key={stack.name}>
                    {formatMoney(stack.store.revenueByHour[hour] ?? 0, decimals)}
                  </td>
                ))}
                <td class="number strong">{formatMoney(sum(hour, "revenueByHour"), decimals)}</td>
                <td class="number">{formatCount(sum(hour, "ordersByHour"))}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}
