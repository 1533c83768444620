/** A uPlot chart as a component: made once, fed with data, redrawn in the colours of the theme. */

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import uPlot from "uplot";

/** A colour of tokens.css as the canvas understands it. */
export type ChartColours = (token: string) => string;

export interface ChartProps {
  /** What a screen reader says instead of the picture. */
  readonly label: string;
  readonly height: number;
  readonly data: uPlot.AlignedData;
  /** Everything that needs a new chart when it changes: theme, series. */
  readonly signature: string;
  readonly options: (colour: ChartColours) => Omit<uPlot.Options, "width" | "height">;
  /** The point under the pointer, or null when it left. */
  readonly onPoint?: (index: number | null) => void;
}

export function Chart({ label, height, data, signature, options, onPoint }: ChartProps) {
  const host = useRef<HTMLDivElement>(null);
  const chart = useRef<uPlot | null>(null);
  const point = useRef(onPoint);
  point.current = onPoint;

  // `signature` stands for the options.
  useLayoutEffect(() => {
    const element = host.current;
    if (element === null) return;
    const made = new uPlot(
      {
        ...options((token) => resolveColour(element, token)),
        width: Math.max(200, element.clientWidth),
        height,
        hooks: { setCursor: [(plot) => point.current?.(plot.cursor.idx ?? null)] },
      },
      data,
      element,
    );
    chart.current = made;
    const observer = new ResizeObserver(() => {
      made.setSize({ width: Math.max(200, element.clientWidth), height });
    });
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
      chart.current = null;
    };
  }, [signature, height]);

  useEffect(() => chart.current?.setData(data), [data]);

  return <div class="chart" ref={host} role="img" aria-label={label} style={{ height }} />;
}

/** Canvas knows no custom properties and no light-dark(): let the browser compute the colour. */
function resolveColour(element: HTMLElement, token: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(--${token})`;
  element.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

const FONT = "12px system-ui, sans-serif";

/** Steps of an axis that counts something whole: 1, 2, 5, 10, 20 … */
const WHOLE_STEPS = Array.from({ length: 16 }, (_, power) =>
  [1, 2, 5].map((step) => step * 10 ** power),
).flat();

/** Axes shared by all charts: quiet, without a frame. */
export function quietAxes(
  colour: ChartColours,
  x: Pick<uPlot.Axis, "values" | "splits" | "space">,
  y: (value: number) => string,
): uPlot.Axis[] {
  const shared = { stroke: colour("ink-3"), font: FONT };
  return [
    { ...shared, ...x, grid: { show: false }, ticks: { show: false }, size: 28, gap: 6 },
    {
      ...shared,
      size: 52,
      gap: 8,
      space: 34,
      incrs: WHOLE_STEPS,
      ticks: { show: false },
      border: { show: false },
      grid: { stroke: colour("line"), width: 1 },
      values: (_, splits) => splits.map(y),
    },
  ];
}

/** A vertical scale from 0, so that heights compare; `least` is its top while there is nothing to show. */
export function scaleFromZero(least: number): uPlot.Scale {
  return { range: (_, __, high) => [0, Math.max(high * 1.1, least)] };
}

/** A cursor that shows where one is, and zooms nothing. */
export function readingCursor(): uPlot.Cursor {
  return { y: false, points: { show: false }, drag: { x: false, y: false } };
}
