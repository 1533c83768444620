/**
 * The server's clock, learned from the times in its messages.
 *
 * A message is always seen later than it was sent, so of the last samples the largest difference is the
 * nearest to the truth: its error is the shortest way a message took.
 */

const SAMPLES_MAX = 16;

export class ServerClock {
  #samples: number[] = [];

  /** A message carrying `serverMs` was received at `localMs`. */
  learn(serverMs: number, localMs: number): void {
    if (!Number.isFinite(serverMs)) return;
    this.#samples.push(serverMs - localMs);
    if (this.#samples.length > SAMPLES_MAX) this.#samples.shift();
  }

  /** Another server may have another clock. */
  forget(): void {
    this.#samples = [];
  }

  /** Server minus local, in ms; 0 while nothing is known. */
  get offsetMs(): number {
    return this.#samples.length === 0 ? 0 : Math.max(...this.#samples);
  }
}
