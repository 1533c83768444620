/** What the reader has to be told: a lost connection, a missing key, a refusal, an empty shop. */

import { useEffect, useState } from "preact/hooks";
import type { LiveClient, Status } from "../client/index.ts";
import { BANNER_AFTER_MS } from "./config.ts";
import { formatTime } from "./format.ts";
import { keepToken, readToken } from "./token.ts";

interface NoticesProps {
  readonly client: LiveClient;
  readonly status: Status;
  readonly refusals: readonly string[];
}

export function Notices({ client, status, refusals }: NoticesProps) {
  const isLost = useLasting(status.phase === "connecting" || status.phase === "waiting");
  return (
    <div class="notices">
      {status.phase === "unauthorized" && <KeyForm client={client} status={status} />}
      {isLost && (
        <div class="notice warning">
          <p>
            <strong>No connection.</strong> The figures are those of {formatTime(client.heardAtMs)}{" "}
            UTC and will catch up by themselves.
            {status.reason && <span class="reason"> ({status.reason})</span>}
          </p>
          <button type="button" onClick={() => client.connect()}>
            Try now
          </button>
        </div>
      )}
      {refusals.map((refusal) => (
        <div class="notice error" key={refusal}>
          <p>
            <strong>Not available.</strong> {refusal}. Asking again by itself.
          </p>
        </div>
      ))}
    </div>
  );
}

/** True once a state has lasted: a reconnect of a moment needs no banner. */
function useLasting(isSo: boolean): boolean {
  const [isLasting, setLasting] = useState(false);
  useEffect(() => {
    if (!isSo) {
      setLasting(false);
      return undefined;
    }
    const timer = setTimeout(() => setLasting(true), BANNER_AFTER_MS);
    return () => clearTimeout(timer);
  }, [isSo]);
  return isSo && isLasting;
}

function KeyForm({ client, status }: Pick<NoticesProps, "client" | "status">) {
  return (
    <form
      class="notice warning"
      onSubmit={(event) => {
        event.preventDefault();
        const key = new FormData(event.currentTarget).get("key");
        if (typeof key === "string") keepToken(key.trim());
        client.connect();
      }}
    >
      <label for="key">
        <strong>API key needed.</strong>{" "}
        {readToken() === null ? "One with the scope “read” is enough." : status.reason}
      </label>
      <input id="key" name="key" type="password" autocomplete="off" required placeholder="crt_…" />
      <button type="submit">Connect</button>
    </form>
  );
}

export function EmptyShop() {
  const [isCopied, setCopied] = useState(false);
  const command = [
    `curl -X POST ${location.origin}/api/v1/orders \\`,
    ...(readToken() === null ? [] : [`  -H "Authorization: Bearer $COFFEE_RT_KEY" \\`]),
    `  -H 'Content-Type: application/json' \\`,
    `  -d '{"store": "uptown", "drink": "latte", "price": "4.50"}'`,
  ].join("\n");
  const copy = async () => {
    await navigator.clipboard.writeText(command);
    setCopied(true);
  };
  return (
    <section class="panel empty" aria-labelledby="empty-title">
      <h2 id="empty-title">No orders yet today</h2>
      <p>Everything is connected and waiting. Post the first one and watch it arrive here:</p>
      <div class="command">
        <pre>
          <code>{command}</code>
        </pre>
        {"clipboard" in navigator && (
          <button type="button" onClick={() => void copy()}>
            {isCopied ? "Copied" : "Copy"}
          </button>
        )}
      </div>
    </section>
  );
}
