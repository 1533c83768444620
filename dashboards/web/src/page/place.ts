/** Where the reader is: the store filter lives in the address's hash, so that it survives a reload and a link. */

export function storeOf(hash: string): string | null {
  return new URLSearchParams(hash.replace(/^#/, "")).get("store") || null;
}

export function hashFor(store: string | null): string {
  return store === null ? "" : `#${new URLSearchParams({ store })}`;
}
