/** The page: header, notices, panels. Holds what the reader chose; everything live comes from LiveData. */

import { useEffect, useMemo, useReducer, useState } from "preact/hooks";
import { Badges, connectionText } from "./badges.tsx";
import type { Figures } from "./figures.ts";
import { formatCompact, formatCount, formatDay, formatMoney } from "./format.ts";
import { Headline } from "./headline.tsx";
import { HoursPanel } from "./hours-panel.tsx";
import { DrinksPanel, TickerPanel } from "./lists.tsx";
import { LiveData } from "./live-data.ts";
import { MinuteChart } from "./minute-chart.tsx";
import { EmptyShop, Notices } from "./notices.tsx";
import { hashFor, storeOf } from "./place.ts";
import { chooseTheme, currentTheme, onSystemTheme, type Theme } from "./theme.ts";

export function App() {
  const [, redraw] = useReducer((count: number) => count + 1, 0);
  const [store, chooseStore] = useStore();
  const [theme, toggleTheme] = useTheme();
  const [frozen, setFrozen] = useState<Figures | null>(null);
  // Made once: `filterBy` follows the store.
  const live = useMemo(() => new LiveData(store, () => redraw(undefined)), []);
  useEffect(() => live.filterBy(store), [live, store]);

  const figures = frozen ?? live.figures();
  const { status } = live.client;
  return (
    <>
      <button type="button" class="skip" onClick={() => document.getElementById("main")?.focus()}>
        Skip to the figures
      </button>
      <header class="top">
        <p class="brand">
          <span class="mark" aria-hidden="true" />
          coffee-rt
        </p>
        <Badges
          client={live.client}
          status={status}
          isPaused={frozen !== null}
          newestAtMs={figures.newestAtMs}
        />
        <div class="controls">
          <StoreFilter stores={figures.stores} store={store} onStore={chooseStore} />
          <button
            type="button"
            aria-pressed={frozen !== null}
            onClick={() => setFrozen(frozen === null ? figures : null)}
          >
            {frozen === null ? "Pause" : "Resume"}
          </button>
          <button
            type="button"
            onClick={toggleTheme}
            aria-label={`Switch to ${other(theme)} colours`}
          >
            {theme === "dark" ? "Light" : "Dark"}
          </button>
        </div>
      </header>
      <p class="unseen" role="status" aria-live="polite">
        {status.phase === "waiting" ? "Reconnecting" : connectionText(status, 0)}
      </p>
      <main id="main" tabIndex={-1}>
        <h1>
          {store ?? "All stores"}
          <span class="aside">{formatDay(figures.dayStart)}, times in UTC</span>
        </h1>
        <Notices client={live.client} status={status} refusals={live.refusals()} />
        <Panels figures={figures} theme={theme} store={store} onStore={chooseStore} />
      </main>
    </>
  );
}

interface PanelsProps {
  readonly figures: Figures;
  readonly theme: Theme;
  readonly store: string | null;
  readonly onStore: (store: string | null) => void;
}

function Panels({ figures, theme, store, onStore }: PanelsProps) {
  const { decimals, minutes, today, ticker } = figures;
  const isEmpty = figures.isLoaded && figures.stores.length === 0 && ticker.length === 0;
  if (isEmpty && today.orders === 0) return <EmptyShop />;
  return (
    <>
      <Headline figures={figures} />
      <div class="grid">
        <MinuteChart
          id="revenue-title"
          title="Revenue per minute"
          colour="revenue"
          theme={theme}
          starts={minutes.starts}
          values={minutes.revenue}
          least={10 * 10 ** decimals}
          format={(value) => formatMoney(value, decimals)}
          formatAxis={(value) => formatCompact(value / 10 ** decimals)}
        />
        <MinuteChart
          id="orders-title"
          title="Orders per minute"
          colour="orders"
          theme={theme}
          starts={minutes.starts}
          values={minutes.orders}
          least={4}
          format={formatCount}
          formatAxis={formatCompact}
        />
        <HoursPanel figures={figures} theme={theme} store={store} onStore={onStore} />
        <DrinksPanel figures={figures} />
        <TickerPanel figures={figures} />
      </div>
    </>
  );
}

interface StoreFilterProps {
  readonly stores: readonly string[];
  readonly store: string | null;
  readonly onStore: (store: string | null) => void;
}

function StoreFilter({ stores, store, onStore }: StoreFilterProps) {
  return (
    <div class="filter">
      <label for="store">Store</label>
      <select
        id="store"
        value={store ?? ""}
        onChange={(event) => onStore(event.currentTarget.value || null)}
      >
        <option value="">All stores</option>
        {stores.map((name) => (
          <option value={name} key={name}>
            {name}
          </option>
        ))}
      </select>
    </div>
  );
}

/** The chosen store, in step with the address. */
function useStore(): [string | null, (store: string | null) => void] {
  const [store, setStore] = useState(() => storeOf(location.hash));
  useEffect(() => {
    const read = () => setStore(storeOf(location.hash));
    window.addEventListener("hashchange", read);
    return () => window.removeEventListener("hashchange", read);
  }, []);
  const choose = (chosen: string | null) => {
    history.replaceState(null, "", `${location.pathname}${location.search}${hashFor(chosen)}`);
    setStore(chosen);
  };
  return [store, choose];
}

function useTheme(): [Theme, () => void] {
  const [theme, setTheme] = useState(currentTheme);
  useEffect(() => onSystemTheme(() => setTheme(currentTheme())), []);
  const toggle = () => {
    chooseTheme(other(theme));
    setTheme(other(theme));
  };
  return [theme, toggle];
}

function other(theme: Theme): Theme {
  return theme === "dark" ? "light" : "dark";
}
