/** The two lists: best drinks of today, newest orders. Both are tables, so nothing hides behind them. */

import type { Figures } from "./figures.ts";
import { formatCount, formatMoney, formatTime, minorOf, NOTHING } from "./format.ts";

/** An order written down longer after it was placed is marked: its till was offline. */
const LATE_MS = 5 * 60_000;

export function DrinksPanel({ figures }: { readonly figures: Figures }) {
  const most = Math.max(1, ...figures.drinks.map((drink) => drink.quantity));
  return (
    <section class="panel best" aria-labelledby="drinks-title">
      <header class="panel-head">
        <h2 id="drinks-title">Top drinks today</h2>
      </header>
      <table class="drinks">
        <caption class="unseen">The most sold drinks of today</caption>
        <thead>
          <tr>
            <th scope="col">Drink</th>
            <th scope="col" class="number">
              Sold
            </th>
            <th scope="col" class="number">
              Revenue
            </th>
          </tr>
        </thead>
        <tbody>
          {figures.drinks.map((drink) => (
            <tr key={drink.name}>
              <th scope="row">
                <span class="name">{drink.name}</span>
                <span class="bar" aria-hidden="true">
                  <span style={{ width: `${(drink.quantity / most) * 100}%` }} />
                </span>
              </th>
              <td class="number strong">{formatCount(drink.quantity)}</td>
              <td class="number">{formatMoney(drink.revenue, figures.decimals)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {figures.drinks.length === 0 && <p class="quiet">Nothing sold yet today.</p>}
    </section>
  );
}

export function TickerPanel({ figures }: { readonly figures: Figures }) {
  const { decimals, ticker } = figures;
  return (
    <section class="panel ticker" aria-labelledby="ticker-title">
      <header class="panel-head">
        <h2 id="ticker-title">Recent orders</h2>
        <p class="readout">newest first</p>
      </header>
      {/* A scrolling region must be reachable by keyboard. */}
      <section class="scroll" tabIndex={0} aria-label="Recent orders, scrollable">
        <table>
          <caption class="unseen">Recent orders, newest first</caption>
          <thead>
            <tr>
              <th scope="col">Time</th>
              <th scope="col">Drink</th>
              <th scope="col">Store</th>
              <th scope="col" class="number">
                Total
              </th>
            </tr>
          </thead>
          <tbody>
            {ticker.map((order) => {
              const isLate = order.accepted_at_ms - order.ordered_at_ms > LATE_MS;
              const at = new Date(order.ordered_at_ms);
              return (
                <tr key={order.order_id} class="order" data-order={order.order_id}>
                  <td>
                    <time dateTime={at.toISOString()}>{formatTime(order.ordered_at_ms)}</time>
                    {isLate && <span class="tag">late</span>}
                  </td>
                  <td class="name">
                    {order.quantity > 1 && `${formatCount(order.quantity)} × `}
                    {order.drink}
                  </td>
                  <td class="name aside">{order.store}</td>
                  <td class="number strong">
                    {formatMoney(minorOf(order.price, decimals) * order.quantity, decimals)}
                  </td>
                </tr>
              );
            })}
          </tbody>
        </table>
        {ticker.length === 0 && <p class="quiet">{NOTHING} No orders yet.</p>}
      </section>
    </section>
  );
}
