/** Light or dark: what the system prefers, until the reader chooses. */

export type Theme = "light" | "dark";

const KEY = "coffee-rt.theme";
const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");

function chosen(): Theme | null {
  const stored = readStorage();
  return stored === "light" || stored === "dark" ? stored : null;
}

/** Storage is refused in some private windows; then the choice lasts as long as the page. */
function readStorage(): string | null {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

export function currentTheme(): Theme {
  const { theme } = document.documentElement.dataset;
  if (theme === "light" || theme === "dark") return theme;
  return prefersDark.matches ? "dark" : "light";
}

export function applyChosenTheme(): void {
  const theme = chosen();
  if (theme !== null) document.documentElement.dataset.theme = theme;
}

export function chooseTheme(theme: Theme): void {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // See readStorage.
  }
}

export function onSystemTheme(listener: () => void): () => void {
  prefersDark.addEventListener("change", listener);
  return () => prefersDark.removeEventListener("change", listener);
}
