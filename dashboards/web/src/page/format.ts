/** Numbers and times as people read them. Amounts arrive in minor units; times are shown in UTC. */

const whole = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const moneyFormats = new Map<number, Intl.NumberFormat>();

const clock = (options: Intl.DateTimeFormatOptions) =>
  new Intl.DateTimeFormat(undefined, { timeZone: "UTC", hourCycle: "h23", ...options });
const toMinute = clock({ hour: "2-digit", minute: "2-digit" });
const toSecond = clock({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
const toDay = clock({ weekday: "long", day: "numeric", month: "long" });

export const NOTHING = "–";

export function formatCount(count: number): string {
  return whole.format(count);
}

/** 123456 with 2 decimals is "1,234.56". Exact: the number's own digits are moved, not divided. */
export function formatMoney(minor: number, decimals: number): string {
  let format = moneyFormats.get(decimals);
  if (format === undefined) {
    format = new Intl.NumberFormat(undefined, {
      minimumFractionDigits: decimals,
      maximumFractionDigits: decimals,
    });
    moneyFormats.set(decimals, format);
  }
  return format.format(plainMoney(minor, decimals) as Intl.StringNumericLiteral);
}

/** The same for machines: "1234.56". */
export function plainMoney(minor: number, decimals: number): string {
  const sign = minor < 0 ? "-" : "";
  const digits = String(Math.abs(minor)).padStart(decimals + 1, "0");
  if (decimals === 0) return sign + digits;
  return `${sign}${digits.slice(0, -decimals)}.${digits.slice(-decimals)}`;
}

/** Minor units of a price such as "4.50", given the decimals to count in. */
export function minorOf(price: string, decimals: number): number {
  const [integer = "0", fraction = ""] = price.split(".");
  return Number(integer + fraction.padEnd(decimals, "0").slice(0, decimals));
}

/** For axes: 12 300 is "12.3K". */
export function formatCompact(value: number): string {
  return compact.format(value);
}

export function formatMinute(unixSeconds: number): string {
  return toMinute.format(unixSeconds * 1000);
}

export function formatTime(unixMs: number): string {
  return toSecond.format(unixMs);
}

export function formatDay(unixSeconds: number): string {
  return toDay.format(unixSeconds * 1000);
}

/** An age: milliseconds while they mean something, then coarser. */
export function formatAge(ms: number): string {
  const age = Math.max(0, Math.round(ms));
  if (age < 10_000) return `${whole.format(age)} ms`;
  if (age < 120_000) return `${Math.floor(age / 1000)} s`;
  if (age < 7_200_000) return `${Math.floor(age / 60_000)} min`;
  return `${Math.floor(age / 3_600_000)} h`;
}
