/** One measure of the last hour, a bar a minute; the minute under way is lighter because it still grows. */

import { useMemo, useState } from "preact/hooks";
import uPlot from "uplot";
import { Chart, quietAxes, readingCursor, scaleFromZero } from "./chart.tsx";
import { MINUTES_SHOWN } from "./config.ts";
import { formatMinute } from "./format.ts";

interface MinuteChartProps {
  readonly id: string;
  readonly title: string;
  /** Name of the colour in tokens.css. */
  readonly colour: string;
  readonly theme: string;
  readonly starts: readonly number[];
  /** In the unit of the axis. */
  readonly values: readonly number[];
  /** Top of the axis while there is nothing to show. */
  readonly least: number;
  readonly format: (value: number) => string;
  readonly formatAxis: (value: number) => string;
}

export function MinuteChart(props: MinuteChartProps) {
  const { id, title, starts, values, format } = props;
  const [pointed, setPointed] = useState<number | null>(null);
  const data = useMemo(() => toData(starts, values), [starts, values]);
  const peak = Math.max(0, ...values);
  const at = pointed !== null && pointed < values.length ? pointed : null;
  return (
    <section class="panel minutes" aria-labelledby={id}>
      <header class="panel-head">
        <h2 id={id}>{title}</h2>
        <p class="readout">
          {at === null
            ? `peak ${format(peak)}`
            : `${formatMinute(starts[at] ?? 0)} · ${format(values[at] ?? 0)}`}
        </p>
      </header>
      <Chart
        label={`${title}, the last ${MINUTES_SHOWN} minutes, peak ${format(peak)}. The table below has the values.`}
        height={168}
        data={data}
        signature={`${props.theme} ${props.colour}`}
        onPoint={setPointed}
        options={(colour) => ({
          legend: { show: false },
          cursor: readingCursor(),
          padding: [8, 20, 0, 0],
          tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
          scales: {
            x: { range: (_, low, high) => [low - 45, high + 45] },
            y: scaleFromZero(props.least),
          },
          axes: quietAxes(
            colour,
            { space: 56, values: (_, splits) => splits.map(formatMinute) },
            props.formatAxis,
          ),
          series: [{}, bars(colour(props.colour)), bars(colour(`${props.colour}-soft`))],
        })}
      />
      <MinuteTable {...props} />
    </section>
  );
}

function bars(fill: string): uPlot.Series {
  const paths = uPlot.paths.bars?.({ size: [0.72, 18], radius: 0.25 });
  return { fill, stroke: fill, width: 0, points: { show: false }, ...(paths && { paths }) };
}

/** Whole minutes, and the one under way in a series of its own. */
function toData(starts: readonly number[], values: readonly number[]): uPlot.AlignedData {
  const last = values.length - 1;
  return [
    [...starts],
    values.map((value, at) => (at === last ? null : value)),
    values.map((value, at) => (at === last ? value : null)),
  ];
}

function MinuteTable({ title, starts, values, format }: MinuteChartProps) {
  const last = starts.length - 1;
  return (
    <details class="behind">
      <summary>Values as a table</summary>
      <div class="scroll short">
        <table>
          <caption class="unseen">{title}</caption>
          <thead>
            <tr>
              <th scope="col">Minute (UTC)</th>
              <th scope="col" class="number">
                {title}
              </th>
            </tr>
          </thead>
          <tbody>
            {starts.map((_, index) => {
              const at = last - index;
              return (
                <tr key={starts[at]}>
                  <th scope="row">
                    {formatMinute(starts[at] ?? 0)}
                    {at === last && " (so far)"}
                  </th>
                  <td class="number">{format(values[at] ?? 0)}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </details>
  );
}
