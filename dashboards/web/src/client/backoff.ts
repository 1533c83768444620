/** How long to wait before trying again: exponential, with jitter, so that many clients do not return at once. */

export interface BackoffLimits {
  readonly firstMs: number;
  readonly longestMs: number;
}

export const RECONNECT: BackoffLimits = { firstMs: 250, longestMs: 15_000 };
/** After "too many": hurrying makes it worse. */
export const UNWELCOME: BackoffLimits = { firstMs: 5_000, longestMs: 60_000 };

/** Between half of and the full exponential step, for attempts counted from 1. `random` gives [0, 1). */
export function backoffMs(attempt: number, limits: BackoffLimits, random: () => number): number {
  const step = Math.min(limits.longestMs, limits.firstMs * 2 ** Math.min(attempt - 1, 20));
  return Math.round(step * (0.5 + random() / 2));
}
