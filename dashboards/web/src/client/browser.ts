/** The real socket, clock and chance of a browser (or of Node 22 and later, which has WebSocket too). */

import { type Clock, LiveClient, type LiveClientOptions, type Socket } from "./live-client.ts";

const systemClock: Clock = {
  now: () => Date.now(),
  after(ms, call) {
    const timer = setTimeout(call, ms);
    return () => clearTimeout(timer);
  },
};

/** A client of the server at `url` (ws:// or wss://). Call `connect()` on it. */
export function createLiveClient(
  url: string,
  options: Pick<LiveClientOptions, "token"> = {},
): LiveClient {
  return new LiveClient({
    ...options,
    clock: systemClock,
    random: Math.random,
    open(events): Socket {
      const socket = new WebSocket(url);
      socket.onopen = () => events.onOpen();
      socket.onmessage = (event: MessageEvent<unknown>) => events.onText(String(event.data));
      socket.onclose = (event) => events.onClose(event.code, event.reason);
      return socket;
    },
  });
}
