/** Whether what is shown can be trusted: the connection, and the age of the newest order shown. */

import { useEffect, useState } from "preact/hooks";
import type { LiveClient, Status } from "../client/index.ts";
import { formatAge } from "./format.ts";

const TICK_MS = 100;
const CALM_TICK_MS = 1_000;

/** The local time, again and again: ten times a second, or once for readers who asked for less motion. */
export function useNow(): number {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const timer = setInterval(() => setNow(Date.now()), isCalm ? CALM_TICK_MS : TICK_MS);
    return () => clearInterval(timer);
  }, []);
  return now;
}

export function connectionText(status: Status, nowMs: number): string {
  switch (status.phase) {
    case "live":
      return status.isStale ? "Stale" : "Live";
    case "connecting":
      return status.attempt === 0 ? "Connecting" : "Reconnecting";
    case "waiting": {
      const seconds = Math.ceil(Math.max(0, (status.retryAtMs ?? nowMs) - nowMs) / 1000);
      return seconds > 1 ? `Reconnecting in ${seconds} s` : "Reconnecting";
    }
    case "unauthorized":
      return "Key needed";
    case "stopped":
      return "Stopped";
  }
}

interface BadgesProps {
  readonly client: LiveClient;
  readonly status: Status;
  readonly isPaused: boolean;
  readonly newestAtMs: number;
}

export function Badges({ client, status, isPaused, newestAtMs }: BadgesProps) {
  const now = useNow();
  const isFresh = status.phase === "live" && !status.isStale;
  const ageMs = client.serverNow() - newestAtMs;
  return (
    <div class="badges">
      <span
        class="badge"
        data-connection={status.phase === "live" && status.isStale ? "stale" : status.phase}
      >
        <span class="dot" aria-hidden="true" />
        {connectionText(status, now)}
      </span>
      {isPaused && (
        <span class="badge" data-connection="paused">
          Display paused
        </span>
      )}
      <span class="badge freshness" data-stale={!isFresh}>
        {newestAtMs === 0 ? (
          "No order shown"
        ) : (
          <>
            {isFresh ? "Newest order" : "Stale: newest order"}{" "}
            <data value={String(Math.max(0, Math.round(ageMs)))} data-figure="age-ms">
              {formatAge(ageMs)}
            </data>{" "}
            ago
          </>
        )}
      </span>
    </div>
  );
}
