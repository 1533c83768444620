/** The API key of this tab, where the server wants one. It lives as long as the tab and goes nowhere else. */

const KEY = "coffee-rt.token";
let token: string | null = null;

export function readToken(): string | null {
  try {
    return token ?? sessionStorage.getItem(KEY);
  } catch {
    return token;
  }
}

export function keepToken(value: string): void {
  token = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // Refused in some private windows: the variable serves until the reload.
  }
}
