/** The four figures at the top: today, and the last whole minute. */

import type { Figures } from "./figures.ts";
import { formatCount, formatMoney, NOTHING, plainMoney } from "./format.ts";

interface FigureProps {
  readonly name: string;
  readonly label: string;
  /** For machines; the text is for people. */
  readonly value: string;
  readonly text: string;
  readonly caption: string;
}

function Figure({ name, label, value, text, caption }: FigureProps) {
  return (
    <div class={`figure ${name}`}>
      <dt>{label}</dt>
      <dd>
        <data value={value} data-figure={name}>
          {text}
        </data>
        <span class="caption">{caption}</span>
      </dd>
    </div>
  );
}

export function Headline({ figures }: { readonly figures: Figures }) {
  const { today, minutes, decimals, isLoaded } = figures;
  const money = (minor: number) => (isLoaded ? formatMoney(minor, decimals) : NOTHING);
  const count = (value: number) => (isLoaded ? formatCount(value) : NOTHING);
  const whole = minutes.starts.length - 2;
  const last = { orders: minutes.orders[whole] ?? 0, revenue: minutes.revenue[whole] ?? 0 };
  const now = { orders: minutes.orders[whole + 1] ?? 0, revenue: minutes.revenue[whole + 1] ?? 0 };
  const average = today.orders === 0 ? NOTHING : money(Math.round(today.revenue / today.orders));
  return (
    <section class="panel headline" aria-label="Key figures">
      <dl>
        <Figure
          name="revenue-today"
          label="Revenue today"
          value={plainMoney(today.revenue, decimals)}
          text={money(today.revenue)}
          caption={`${average} an order`}
        />
        <Figure
          name="orders-today"
          label="Orders today"
          value={String(today.orders)}
          text={count(today.orders)}
          caption={`${count(today.quantity)} drinks`}
        />
        <Figure
          name="revenue-minute"
          label="Revenue last minute"
          value={plainMoney(last.revenue, decimals)}
          text={money(last.revenue)}
          caption={`${money(now.revenue)} this minute`}
        />
        <Figure
          name="orders-minute"
          label="Orders last minute"
          value={String(last.orders)}
          text={count(last.orders)}
          caption={`${count(now.orders)} this minute`}
        />
      </dl>
    </section>
  );
}
